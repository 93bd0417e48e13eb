-- record_tasks: record a batch, skipping the ids that are recorded already; one row.
--
-- :tasks is a JSON array of objects with members named like the columns. :actor and :request_id are
-- for the event log; if the tasks are of several requests, :authors is a JSON array with an array
-- of these two for each task. :lock_wait limits how long to wait for other transactions.
--
-- task_ids: a JSON array, in the order sent; ids that were not sent are made here. are_new: in the
-- same order. recorded: how many are new. too_late: a JSON array of the positions (from 0) of those
-- whose created_at is over 24 h ahead of the clock; they are not recorded. known_ids and
-- known_digests, for find_conflicts: those that are not new, or not the first of that id.
-- Keys are claimed in the order of ids, so that two batches cannot wait for each other; rows go
-- in by time, so that a page of tasks lies on few blocks.
WITH author AS MATERIALIZED (
    -- The triggers of the event log read these settings at the end of the statement.
    SELECT
        set_config('audit.actor', COALESCE(:actor::text, ''), TRUE) AS actor,
        set_config('audit.request_id', COALESCE(:request_id::text, ''), TRUE) AS request_id,
        CASE
            WHEN :lock_wait::text IS NOT NULL THEN set_config('lock_timeout', :lock_wait, TRUE)
        END AS lock_wait
),

sent AS MATERIALIZED (
    SELECT
        item.position,
        COALESCE(batch.task_id, gen_random_uuid()) AS task_id,
        COALESCE(batch.created_at, now()) AS created_at,
        COALESCE(batch.status, 'pending') AS status,
        COALESCE(batch.services_touched, '{}') AS services_touched,
        batch.project_id,
        batch.approved_at,
        batch.completed_at,
        batch.request_text,
        batch.created_by,
        batch.outcome,
        batch.estimated_resources,
        batch.actual_resources,
        batch.external_ai_used,
        batch.error_message,
        batch.suggestions,
        -- The text of all members, in which equal numbers are spelled equally. An array quotes its
        -- elements, and the text of a JSON value has no line feed.
        sha256(convert_to(
            ARRAY[
                batch.project_id::text,
                batch.request_text,
                batch.created_by,
                COALESCE(batch.status, 'pending')::text,
                extract(EPOCH FROM batch.created_at)::text,
                extract(EPOCH FROM batch.approved_at)::text,
                extract(EPOCH FROM batch.completed_at)::text,
                COALESCE(batch.services_touched, '{}')::text,
                batch.error_message
            ]::text
            || text_of_equal_numbers(concat(
                E'\n', batch.outcome,
                E'\n', batch.estimated_resources,
                E'\n', batch.actual_resources,
                E'\n', batch.external_ai_used,
                E'\n', batch.suggestions
            )),
            'UTF8'
        )) AS digest
    FROM author
    CROSS JOIN json_array_elements(:tasks::json) WITH ORDINALITY AS item (task, position)
    CROSS JOIN
        LATERAL json_to_record(item.task) AS batch (
            task_id uuid, project_id uuid, created_at timestamptz, approved_at timestamptz,
            completed_at timestamptz, status task_status, request_text text, created_by text,
            services_touched text[], outcome jsonb, estimated_resources jsonb,
            actual_resources jsonb, external_ai_used jsonb, error_message text,
            suggestions jsonb
        )
),

first_of_each AS (
    SELECT DISTINCT ON (task_id) *
    FROM sent
    WHERE created_at <= now() + interval '24 hours'
    ORDER BY task_id ASC, position ASC
),

authors AS MATERIALIZED (
    SELECT
        set_config(
            'audit.authors',
            json_object_agg(task_id, (:authors::json) -> (position - 1)::integer)::text,
            TRUE
        ) AS authors
    FROM first_of_each
    WHERE :authors::json IS NOT NULL
),

claimed AS (
    INSERT INTO task_keys (task_id, created_at, digest)
    SELECT task_id, created_at, digest
    FROM first_of_each
    CROSS JOIN authors
    ON CONFLICT (task_id) DO NOTHING
    RETURNING task_id
),

recorded AS (
    INSERT INTO tasks (
        task_id, project_id, created_at, approved_at, completed_at, status, request_text,
        created_by, services_touched, outcome, estimated_resources, actual_resources,
        external_ai_used, error_message, suggestions
    )
    SELECT
        task_id, project_id, created_at, approved_at, completed_at, status, request_text,
        created_by, services_touched, outcome, estimated_resources, actual_resources,
        external_ai_used, error_message, suggestions
    FROM first_of_each
    WHERE task_id IN (SELECT claimed.task_id FROM claimed)
    ORDER BY created_at, task_id
    RETURNING task_id
)

SELECT
    json_agg(sent.task_id ORDER BY sent.position)::text AS task_ids,
    (SELECT count(*) FROM recorded) AS recorded,
    json_agg(sent.position - 1 ORDER BY sent.position) FILTER (
        WHERE sent.created_at > now() + interval '24 hours'
    )::text AS too_late,
    array_agg(claimed.task_id IS NOT NULL ORDER BY sent.position) AS are_new,
    array_agg(sent.task_id) FILTER (WHERE claimed.task_id IS NULL) AS known_ids,
    array_agg(sent.digest) FILTER (WHERE claimed.task_id IS NULL) AS known_digests
FROM sent
LEFT JOIN first_of_each ON sent.position = first_of_each.position
LEFT JOIN claimed ON first_of_each.task_id = claimed.task_id
