-- update_tasks: change several open tasks, each for another request.
--
-- It does only what needs no decision and no waiting. A task is left as it is if it is not recorded
-- or of another project, if its condition does not hold, if the change is not allowed or would
-- change nothing, and if another transaction is changing it. update_task then says what is wrong.
-- :changes is a JSON array of objects with the parameters of update_task, and :task_ids has the ids
-- of the same tasks, each of them once. :lock_wait limits how long to wait for a lock on a table.
--
-- A row for each task that was changed. document: every column of the task as it is now. etag: its
-- entity tag.
WITH asked AS MATERIALIZED (
    SELECT change.*
    FROM json_to_recordset(:changes::json) AS change (
        task_id uuid, change jsonb, project_id uuid, match text[], none_match text[],
        actor text, request_id text
    )
),

author AS MATERIALIZED (
    -- The triggers of the event log read audit.authors at the end of the statement.
    SELECT
        set_config(
            'audit.authors',
            json_object_agg(task_id, json_build_array(actor, request_id))::text,
            TRUE
        ) AS authors,
        set_config('lock_timeout', :lock_wait, TRUE) AS lock_wait
    FROM asked
),

-- The rows are locked first, because only SELECT can skip those that others have locked. OFFSET and
-- FOR UPDATE make PostgreSQL look up each key and each task by index. The planner knows the times
-- of the tasks, so that it opens only their partitions.
locked AS MATERIALIZED (
    SELECT asked.*, task.place
    FROM author
    CROSS JOIN asked
    CROSS JOIN
        LATERAL (
            SELECT task_keys.created_at
            FROM task_keys
            WHERE task_keys.task_id = asked.task_id
            OFFSET 0
        ) AS task_key
    CROSS JOIN
        LATERAL (
            SELECT tasks.ctid AS place
            FROM tasks
            WHERE
                tasks.task_id = asked.task_id
                AND tasks.created_at = task_key.created_at
                AND tasks.created_at = ANY(created_at_of_all(:task_ids))
            FOR NO KEY UPDATE SKIP LOCKED
        ) AS task
),

changed AS (
    UPDATE tasks
    SET (
        status, approved_at, completed_at, services_touched, outcome, estimated_resources,
        actual_resources, external_ai_used, error_message, suggestions
    ) = (
        SELECT
            changed.status, changed.approved_at, changed.completed_at, changed.services_touched,
            changed.outcome, changed.estimated_resources, changed.actual_resources,
            changed.external_ai_used, changed.error_message, changed.suggestions
        FROM jsonb_populate_record(tasks, locked.change) AS changed -- noqa: RF01
    )
    FROM locked
    WHERE
        tasks.task_id = locked.task_id
        -- Each of the next two lets PostgreSQL read these rows alone, by their places or by index.
        AND tasks.ctid = ANY(ARRAY(SELECT locked.place FROM locked))
        AND tasks.task_id = ANY(:task_ids)
        AND tasks.created_at = ANY(created_at_of_all(:task_ids))
        AND (locked.project_id IS NULL OR tasks.project_id = locked.project_id)
        AND (
            (locked.match IS NULL AND locked.none_match IS NULL)
            OR task_matches(tasks, locked.match, locked.none_match)
        )
        -- The trigger guard_change would refuse these, and with them the whole statement.
        AND is_terminal(tasks.status) IS NOT TRUE
        AND COALESCE(tasks.status <= (locked.change ->> 'status')::task_status, TRUE)
        AND NOT task_is_as(tasks, locked.change)
    RETURNING tasks.task_id, task_document(tasks) AS document
)

SELECT task_id, document, task_etag(document) AS etag
FROM changed
