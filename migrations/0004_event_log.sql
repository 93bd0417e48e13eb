-- The event log: every change of a task, with who made it, in an order that never changes.
--
-- Triggers on tasks append an event for each new or changed task to task_event_queue, whatever
-- program writes. Writers do not wait for each other. sequence_task_events moves events from the
-- queue to task_events and gives each the next position: 0, 1, 2 and so on, without gaps. An event
-- that commits late gets a later position, so that nobody who reads by position misses it. The
-- events of one task are always in their order.
--
-- Tasks that were recorded before this migration have no events.
--
-- SQLSTATE TA004 an event may not be changed or removed.
--
-- depends: 0003_guards

DO $$ BEGIN
    PERFORM set_config('search_path', quote_ident(current_schema()) || ', pg_temp', TRUE);
END $$;

-- imported: the state of a task that was recorded before the log existed.
CREATE TYPE task_event_kind AS ENUM ('recorded', 'changed', 'imported');

-- Events that have no position yet.
CREATE TABLE task_event_queue (
    event_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT now(),
    kind task_event_kind NOT NULL,
    task_id uuid NOT NULL,
    created_at timestamptz NOT NULL,
    project_id uuid,
    created_by text,
    -- What lists filter by and counts count, after the change.
    status task_status NOT NULL,
    services_touched text[] NOT NULL,
    intent text,
    -- The same before the change. All are NULL for the first event of a task.
    before_status task_status,
    before_services text[],
    before_intent text,
    -- Who made the change, and in which request. NULL if the program did not say.
    actor text,
    request_id text,
    -- The role that the program logged in with.
    db_role name NOT NULL DEFAULT session_user,
    -- content is SHA-256 of salt, a line feed and the document of the task, all as text. Without
    -- the salt nobody can confirm what he guesses of a document.
    salt uuid NOT NULL,
    content bytea NOT NULL,
    -- The replaced values of the changed columns, as jsonb_populate_record takes them: with them an
    -- earlier version of a task is made from a later one. '{}': nothing changed. NULL: first event.
    was jsonb
) WITH (
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 10000,
    vacuum_index_cleanup = on
);

-- Events with their positions, partitioned by month.
CREATE TABLE task_events (
    position bigint NOT NULL,
    event_id bigint NOT NULL,
    at timestamptz NOT NULL,
    kind task_event_kind NOT NULL,
    task_id uuid NOT NULL,
    created_at timestamptz NOT NULL,
    project_id uuid,
    created_by text,
    status task_status NOT NULL,
    services_touched text[] NOT NULL,
    intent text,
    before_status task_status,
    before_services text[],
    before_intent text,
    actor text,
    request_id text,
    db_role name NOT NULL,
    salt uuid NOT NULL,
    content bytea NOT NULL,
    was jsonb
) PARTITION BY RANGE (at);

CREATE INDEX task_events_by_position ON task_events (position);
CREATE INDEX task_events_by_task ON task_events (task_id);

-- What the sequencer remembers. Each step appends a row, numbered without gaps. Only the newest row
-- is valid. If one row were updated instead, and a dump or a replication slot kept PostgreSQL from
-- removing its old versions, every reader would walk through them.
CREATE TABLE task_log_marks (
    mark bigint PRIMARY KEY,
    -- How many events have a position: 0 to size - 1.
    size bigint NOT NULL,
    -- No event in the queue has a lower event_id, now or later. Readers pass over what dead rows
    -- there are before it.
    queue_floor bigint NOT NULL,
    -- What the floor is going to be, less one, when each transaction before next_floor_xid has
    -- ended; see sequence_task_events.
    next_floor bigint,
    next_floor_xid xid8,
    -- task_counts contains the events before this position. The others are not older than
    -- uncounted_since, which leads to their partitions.
    counted bigint NOT NULL,
    uncounted_since timestamptz NOT NULL
);

INSERT INTO task_log_marks (mark, size, queue_floor, counted, uncounted_since)
VALUES (0, 0, 0, 0, 'infinity');

-- The newest row of task_log_marks.
CREATE VIEW task_log_state AS
SELECT mark, size, queue_floor, next_floor, next_floor_xid, counted, uncounted_since
FROM task_log_marks
ORDER BY mark DESC
LIMIT 1;

-- The timelines of the server that the sequencer has worked on, oldest first. A failover begins a
-- new one. With this table a standby knows which timeline it replays, and every server knows which
-- transactions a failover has lost.
CREATE TABLE task_timelines (
    number bigint PRIMARY KEY,
    -- As in the names of WAL files: 8 hexadecimal digits.
    timeline text NOT NULL,
    -- Where it leaves the timeline before it. NULL: not known.
    began_at pg_lsn
);

-- All events. event_id orders the events of a task; position is NULL in the queue.
CREATE VIEW task_history WITH (security_invoker = TRUE) AS
SELECT
    position, event_id, at, kind, task_id, status, actor, request_id, db_role, salt, content, was
FROM task_events
UNION ALL
SELECT
    NULL AS position, event_id, at, kind, task_id, status, actor, request_id, db_role, salt,
    content, was
FROM task_event_queue
WHERE event_id >= (SELECT task_log_state.queue_floor FROM task_log_state);

-- How many events have a position: 0 to size - 1.
CREATE FUNCTION task_log_size() RETURNS bigint
LANGUAGE sql STABLE
RETURN (SELECT task_log_state.size FROM task_log_state);

-- How many events there are, with a position or not.
--
-- Each new or changed task adds an event in the same transaction, and no event is removed. So two
-- snapshots with the same number of events of the same server have the same tasks.
--
-- Without statistics the planner takes the floor for the middle of the queue, and would read all of
-- it, with its dead rows.
CREATE FUNCTION task_event_count() RETURNS bigint
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    state task_log_state;
BEGIN
    SELECT * INTO STRICT state FROM task_log_state;
    RETURN state.size + (SELECT count(*) FROM task_event_queue WHERE event_id >= state.queue_floor);
END
$$;

-- The digest of what a task is, which only those can check who have the salt and the document.
-- It is STABLE, as convert_to is, so that the planner inlines it.
CREATE FUNCTION task_content(salt uuid, document text) RETURNS bytea
LANGUAGE sql STABLE
RETURN sha256(convert_to(salt::text || E'\n' || document, 'UTF8'));

-- A time as jsonb. For times that RFC 3339 can express it is the same text in every time zone.
CREATE FUNCTION time_as_json(at timestamptz) RETURNS jsonb
LANGUAGE sql STABLE
RETURN CASE
    WHEN at >= '0001-01-01 00:00:00+00' AND at < '10000-01-01 00:00:00+00'
        THEN to_jsonb(rfc3339(at))
    ELSE to_jsonb(at)
END;

-- The columns that differ between two versions of a task, with their values in the earlier one.
--
-- JSON is compared as text: the numbers 1.0 and 1.00 are equal, but the documents differ. A column
-- that was NULL is a JSON null.
CREATE FUNCTION task_was(earlier tasks, later tasks) RETURNS jsonb
LANGUAGE sql STABLE
RETURN CASE
    WHEN earlier.status = later.status THEN '{}'::jsonb
    ELSE jsonb_build_object('status', earlier.status)
END
|| CASE
    WHEN earlier.approved_at IS NOT DISTINCT FROM later.approved_at THEN '{}'
    ELSE jsonb_build_object('approved_at', time_as_json(earlier.approved_at))
END
|| CASE
    WHEN earlier.completed_at IS NOT DISTINCT FROM later.completed_at THEN '{}'
    ELSE jsonb_build_object('completed_at', time_as_json(earlier.completed_at))
END
|| CASE
    WHEN earlier.services_touched = later.services_touched THEN '{}'
    ELSE jsonb_build_object('services_touched', earlier.services_touched)
END
|| CASE
    WHEN earlier.outcome::text IS NOT DISTINCT FROM later.outcome::text THEN '{}'
    ELSE jsonb_build_object('outcome', earlier.outcome)
END
|| CASE
    WHEN earlier.estimated_resources::text IS NOT DISTINCT FROM later.estimated_resources::text
        THEN '{}'
    ELSE jsonb_build_object('estimated_resources', earlier.estimated_resources)
END
|| CASE
    WHEN earlier.actual_resources::text IS NOT DISTINCT FROM later.actual_resources::text THEN '{}'
    ELSE jsonb_build_object('actual_resources', earlier.actual_resources)
END
|| CASE
    WHEN earlier.external_ai_used::text IS NOT DISTINCT FROM later.external_ai_used::text THEN '{}'
    ELSE jsonb_build_object('external_ai_used', earlier.external_ai_used)
END
|| CASE
    WHEN earlier.error_message IS NOT DISTINCT FROM later.error_message THEN '{}'
    ELSE jsonb_build_object('error_message', earlier.error_message)
END
|| CASE
    WHEN earlier.suggestions::text IS NOT DISTINCT FROM later.suggestions::text THEN '{}'
    ELSE jsonb_build_object('suggestions', earlier.suggestions)
END;

-- A setting that a program has made with set_config(name, ..., TRUE); NULL if it has not.
-- PostgreSQL leaves '' behind when the transaction ends.
CREATE FUNCTION audit_setting(name text) RETURNS text
LANGUAGE sql STABLE
RETURN NULLIF(current_setting(name, TRUE), '');

-- Append an event for each new task.
--
-- audit.actor and audit.request_id say who makes the change. A statement that serves several
-- requests sets audit.authors: a JSON object from the id of a task to an array of these two.
--
-- OFFSET 0: a salt is made for each row, and used twice.
CREATE FUNCTION queue_recorded_tasks() RETURNS trigger
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    actor text := audit_setting('audit.actor');
    request_id text := audit_setting('audit.request_id');
    authors jsonb := audit_setting('audit.authors');
BEGIN
    INSERT INTO task_event_queue (
        kind, task_id, created_at, project_id, created_by, status, services_touched, intent,
        actor, request_id, salt, content
    )
    SELECT
        'recorded', task_id, created_at, project_id, created_by, status, services_touched, intent,
        CASE WHEN author IS NULL THEN actor ELSE author ->> 0 END,
        CASE WHEN author IS NULL THEN request_id ELSE author ->> 1 END,
        salt,
        task_content(salt, document)
    FROM (
        SELECT
            recorded.*,
            CASE WHEN authors IS NOT NULL THEN authors -> task_id::text END AS author,
            gen_random_uuid() AS salt,
            task_document(ROW(recorded.*)::tasks) AS document
        FROM recorded
        OFFSET 0
    ) AS salted;
    RETURN NULL;
END
$$;

CREATE TRIGGER queue_recorded AFTER INSERT ON tasks
REFERENCING NEW TABLE AS recorded
FOR EACH STATEMENT EXECUTE FUNCTION queue_recorded_tasks();

-- Append an event for each task that an UPDATE has written, changed or not.
--
-- A session keeps the plan, maybe from an UPDATE of one task. A nested loop would then take very
-- long for an UPDATE of many.
CREATE FUNCTION queue_changed_tasks() RETURNS trigger
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path FROM CURRENT
SET enable_nestloop = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    actor text := audit_setting('audit.actor');
    request_id text := audit_setting('audit.request_id');
    authors jsonb := audit_setting('audit.authors');
BEGIN
    INSERT INTO task_event_queue (
        kind, task_id, created_at, project_id, created_by, status, services_touched, intent,
        before_status, before_services, before_intent, actor, request_id, salt, content, was
    )
    SELECT
        'changed', task_id, created_at, project_id, created_by, status, services_touched, intent,
        before_status, before_services, before_intent,
        CASE WHEN author IS NULL THEN actor ELSE author ->> 0 END,
        CASE WHEN author IS NULL THEN request_id ELSE author ->> 1 END,
        salt,
        task_content(salt, document),
        was
    FROM (
        SELECT
            later.*,
            earlier.status AS before_status,
            earlier.services_touched AS before_services,
            earlier.intent AS before_intent,
            task_was(ROW(earlier.*)::tasks, ROW(later.*)::tasks) AS was,
            CASE WHEN authors IS NOT NULL THEN authors -> task_id::text END AS author,
            gen_random_uuid() AS salt,
            task_document(ROW(later.*)::tasks) AS document
        FROM before_change AS earlier
        INNER JOIN after_change AS later USING (task_id)
        OFFSET 0
    ) AS salted;
    RETURN NULL;
END
$$;

CREATE TRIGGER queue_changed AFTER UPDATE ON tasks
REFERENCING OLD TABLE AS before_change NEW TABLE AS after_change
FOR EACH STATEMENT EXECUTE FUNCTION queue_changed_tasks();

ALTER TABLE tasks ENABLE ALWAYS TRIGGER queue_recorded;
ALTER TABLE tasks ENABLE ALWAYS TRIGGER queue_changed;

-- Record a batch of tasks, skipping the ids that are recorded already.
--
-- given is a JSON array of objects with members named like the columns of tasks. actor and
-- request_id are for the event log; if the tasks are of several requests, authors is a JSON array
-- with an array of these two for each task. lock_wait limits how long to wait for other
-- transactions.
--
-- task_ids: a JSON array, in the order given; ids that were not given are made here. are_new: in
-- the same order. recorded: how many are new. too_late: a JSON array of the positions (from 0) of
-- those whose created_at is over 24 h ahead of the clock; they are not recorded. known_ids and
-- known_digests, for find_conflicts: those that are not new, or not the first of that id.
--
-- Keys are claimed in the order of ids, so that two batches cannot wait for each other; rows go
-- in by time, so that a page of tasks lies on few blocks.
--
-- It is a function because a session then keeps the plan, which takes a third of the time of a
-- single task. The service pins custom plans for its other statements.
CREATE FUNCTION record_tasks(
    given json,
    actor text,
    request_id text,
    authors jsonb,
    lock_wait text,
    OUT task_ids text,
    OUT recorded bigint,
    OUT too_late text,
    OUT are_new boolean[],
    OUT known_ids uuid[],
    OUT known_digests bytea[]
)
LANGUAGE plpgsql
SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan
AS $$
BEGIN
    -- The triggers read these when the next statement ends.
    PERFORM
        set_config('audit.actor', COALESCE(actor, ''), TRUE),
        set_config('audit.request_id', COALESCE(request_id, ''), TRUE);
    -- A statement waits for locks on its tables before it does anything, so it cannot limit this
    -- wait itself.
    IF lock_wait IS NOT NULL THEN
        PERFORM set_config('lock_timeout', lock_wait, TRUE);
    END IF;

    WITH sent AS MATERIALIZED (
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
            -- The text of all members, in which equal numbers are spelled equally. An array quotes
            -- its elements, and the text of a JSON value has no line feed.
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
        FROM json_array_elements(given) WITH ORDINALITY AS item (task, position)
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
                json_object_agg(task_id, authors -> (position - 1)::integer)::text,
                TRUE
            ) AS authors
        FROM first_of_each
        WHERE authors IS NOT NULL
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
        json_agg(sent.task_id ORDER BY sent.position)::text,
        (SELECT count(*) FROM recorded),
        json_agg(sent.position - 1 ORDER BY sent.position) FILTER (
            WHERE sent.created_at > now() + interval '24 hours'
        )::text,
        array_agg(claimed.task_id IS NOT NULL ORDER BY sent.position),
        array_agg(sent.task_id) FILTER (WHERE claimed.task_id IS NULL),
        array_agg(sent.digest) FILTER (WHERE claimed.task_id IS NULL)
    INTO task_ids, recorded, too_late, are_new, known_ids, known_digests
    FROM sent
    LEFT JOIN first_of_each ON sent.position = first_of_each.position
    LEFT JOIN claimed ON first_of_each.task_id = claimed.task_id;
END
$$;

-- Change an open task if a condition holds. All results are NULL if the id is not recorded.
--
-- change is a JSON object with members named like columns; null: set to NULL; absent: leave as it
-- is. The task must be of this project and must have one of the entity tags match, and none of
-- none_match. '*' is any tag; NULL: no condition. actor and request_id are for the event log.
-- lock_wait limits how long to wait for other transactions.
--
-- document: every column of the task as it is now. etag: its entity tag. is_done: the task is what
-- the change says; nothing is written if it was so before. is_matched: the condition holds. If it
-- holds and is_done is false, another transaction changed the task at the same time: call it again.
--
-- It is a function because PostgreSQL plans less: not what makes the document, which a session
-- plans once, and the part for a task that is not changed only if it is needed. The planner knows
-- created_at, so that it opens one partition.
CREATE FUNCTION update_task(
    task uuid,
    change jsonb,
    project uuid,
    match text[],
    none_match text[],
    actor text,
    request_id text,
    lock_wait text,
    OUT document text,
    OUT etag text,
    OUT is_done boolean,
    OUT is_matched boolean
)
LANGUAGE plpgsql
SET search_path FROM CURRENT
SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    held tasks;
    held_at timestamptz := created_at_of(task);
BEGIN
    IF held_at IS NULL THEN
        -- A standby may not have the task yet.
        IF current_setting('transaction_read_only') = 'on' THEN
            RAISE read_only_sql_transaction
                USING MESSAGE = 'cannot change a task in a read-only transaction';
        END IF;
        RETURN;
    END IF;
    -- The triggers read these when the next statement ends.
    PERFORM
        set_config('audit.actor', COALESCE(actor, ''), TRUE),
        set_config('audit.request_id', COALESCE(request_id, ''), TRUE);
    IF lock_wait IS NOT NULL THEN
        PERFORM set_config('lock_timeout', lock_wait, TRUE);
    END IF;

    -- The trigger guard_change decides what may change, and when. An UPDATE that waited for another
    -- one evaluates its WHERE again, for the row as the other one left it.
    UPDATE tasks
    SET (
        status, approved_at, completed_at, services_touched, outcome, estimated_resources,
        actual_resources, external_ai_used, error_message, suggestions
    ) = (
        SELECT
            changed.status, changed.approved_at, changed.completed_at, changed.services_touched,
            changed.outcome, changed.estimated_resources, changed.actual_resources,
            changed.external_ai_used, changed.error_message, changed.suggestions
        FROM jsonb_populate_record(tasks, change) AS changed
    )
    WHERE
        task_id = task
        AND created_at = held_at
        AND (project IS NULL OR project_id = project)
        AND (
            (match IS NULL AND none_match IS NULL)
            OR task_matches(tasks, match, none_match)
        )
        AND NOT task_is_as(tasks, change)
    RETURNING * INTO held;
    is_done := FOUND;
    is_matched := FOUND;
    IF NOT FOUND THEN
        SELECT * INTO held
        FROM tasks
        WHERE task_id = task AND created_at = held_at AND (project IS NULL OR project_id = project);
        IF NOT FOUND THEN
            RETURN;
        END IF;
        is_done := task_is_as(held, change);
        is_matched := task_matches(held, match, none_match);
    END IF;
    document := task_document(held);
    etag := task_etag(document);
END
$$;

-- Change several open tasks, each for another request.
--
-- It does only what needs no decision and no waiting. A task is left as it is if it is not recorded
-- or of another project, if its condition does not hold, if the change is not allowed or would
-- change nothing, and if another transaction is changing it. update_task then says what is wrong.
-- changes is a JSON array of objects with the parameters of update_task, and task_ids has the ids
-- of the same tasks, each of them once. lock_wait limits how long to wait for a lock on a table.
--
-- A row for each task that was changed. document: every column of the task as it is now. etag: its
-- entity tag.
CREATE FUNCTION update_tasks(changes json, task_ids uuid[], lock_wait text)
RETURNS TABLE (task_id uuid, document text, etag text)
LANGUAGE plpgsql
SET search_path FROM CURRENT
SET plan_cache_mode = force_custom_plan
AS $$
BEGIN
    -- A statement waits for locks on its tables before it does anything, so it cannot limit this
    -- wait itself.
    PERFORM set_config('lock_timeout', lock_wait, TRUE);

    RETURN QUERY
    WITH asked AS MATERIALIZED (
        SELECT change.*
        FROM json_to_recordset(changes) AS change (
            task_id uuid, change jsonb, project_id uuid, match text[], none_match text[],
            actor text, request_id text
        )
    ),

    author AS MATERIALIZED (
        -- The triggers of the event log read audit.authors at the end of the statement.
        SELECT
            set_config(
                'audit.authors',
                json_object_agg(
                    asked.task_id, json_build_array(asked.actor, asked.request_id)
                )::text,
                TRUE
            ) AS authors
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
                    AND tasks.created_at = ANY(created_at_of_all(task_ids))
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
            AND tasks.task_id = ANY(task_ids)
            AND tasks.created_at = ANY(created_at_of_all(task_ids))
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

    SELECT changed.task_id, changed.document, task_etag(changed.document)
    FROM changed;
END
$$;

-- Refuse to change or remove an event. sequence_task_events may remove it from the queue: it makes
-- a setting that says so. Like the guards of tasks this one is against mistakes, since the owner of
-- the tables could drop it.
CREATE FUNCTION refuse_event_change() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    IF TG_TABLE_NAME = 'task_event_queue' AND TG_OP = 'DELETE'
        AND current_setting('audit.is_sequencing', TRUE) = 'on'
    THEN
        RETURN NULL;
    END IF;
    RAISE EXCEPTION 'the event log is append-only: % of % is refused', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'TA004';
END
$$;

CREATE TRIGGER refuse_change BEFORE UPDATE OR DELETE OR TRUNCATE ON task_event_queue
FOR EACH STATEMENT EXECUTE FUNCTION refuse_event_change();

-- A row trigger: it guards the partitions too.
CREATE TRIGGER refuse_change BEFORE UPDATE OR DELETE ON task_events
FOR EACH ROW EXECUTE FUNCTION refuse_event_change();

CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON task_events
EXECUTE FUNCTION refuse_event_change();

ALTER TABLE task_event_queue ENABLE ALWAYS TRIGGER refuse_change;
ALTER TABLE task_events ENABLE ALWAYS TRIGGER refuse_change;
ALTER TABLE task_events ENABLE ALWAYS TRIGGER refuse_truncate;

-- Make the partition of task_events for the month that holds a time, if there is none; return
-- whether there was none.
CREATE FUNCTION make_event_partition(held timestamptz) RETURNS boolean
LANGUAGE plpgsql
SET timezone = 'UTC'
SET search_path FROM CURRENT
AS $$
DECLARE
    month timestamptz := date_trunc('month', held);
    name text := 'task_events_' || to_char(month, 'YYYYMM');
BEGIN
    IF to_regclass(quote_ident(name)) IS NOT NULL THEN
        RETURN FALSE;
    END IF;
    EXECUTE format('CREATE TABLE %I (LIKE task_events INCLUDING ALL)', name);
    EXECUTE format(
        'CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON %I '
        'EXECUTE FUNCTION refuse_event_change()', name
    );
    EXECUTE format('ALTER TABLE %I ENABLE ALWAYS TRIGGER refuse_truncate', name);
    -- ATTACH takes a lock that lets reads and writes go on; CREATE ... PARTITION OF does not.
    EXECUTE format(
        'ALTER TABLE task_events ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
        name, month, month + interval '1 month'
    );
    RETURN TRUE;
END
$$;

DO $$ BEGIN
    PERFORM make_event_partition(now());
END $$;

-- Give the transaction an id before the first event gets one; sequence_task_events relies on it.
CREATE FUNCTION assign_transaction_id() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_current_xact_id();
    RETURN NULL;
END
$$;

CREATE TRIGGER assign_transaction_id BEFORE INSERT ON task_event_queue
FOR EACH STATEMENT EXECUTE FUNCTION assign_transaction_id();

ALTER TABLE task_event_queue ENABLE ALWAYS TRIGGER assign_transaction_id;

-- Append a row to task_log_marks. The caller holds the lock of the sequencer.
CREATE FUNCTION append_task_log_mark(state task_log_state) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
BEGIN
    INSERT INTO task_log_marks (
        mark, size, queue_floor, next_floor, next_floor_xid, counted, uncounted_since
    )
    VALUES (
        state.mark + 1, state.size, state.queue_floor, state.next_floor, state.next_floor_xid,
        state.counted, state.uncounted_since
    );
    DELETE FROM task_log_marks WHERE mark = state.mark - 100;
END
$$;

-- Append a row to task_timelines if the server has begun a new timeline. The caller holds the lock
-- of the sequencer.
CREATE FUNCTION note_task_timeline() RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    newest task_timelines;
    current_timeline text := left(pg_walfile_name(pg_current_wal_insert_lsn()), 8);
BEGIN
    SELECT * INTO newest FROM task_timelines ORDER BY number DESC LIMIT 1;
    IF newest.timeline IS DISTINCT FROM current_timeline THEN
        INSERT INTO task_timelines (number, timeline, began_at)
        VALUES (COALESCE(newest.number, 0) + 1, current_timeline, pg_last_wal_replay_lsn());
    END IF;
END
$$;

-- Raise unless the caller's transaction has done nothing yet and takes a new snapshot for each
-- statement. Otherwise the snapshot may be older than the lock that the caller takes, and lack what
-- the session that had the lock before has committed.
CREATE FUNCTION require_own_transaction() RETURNS void
LANGUAGE plpgsql STABLE
AS $$
BEGIN
    IF
        current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted')
        OR pg_current_xact_id_if_assigned() IS NOT NULL
    THEN
        RAISE EXCEPTION 'this needs a READ COMMITTED transaction of its own'
            USING ERRCODE = 'invalid_transaction_state';
    END IF;
END
$$;

-- Move at most so many events from the queue to the log, and give them the next positions.
--
-- sequenced: how many were moved; NULL if another session is at it. is_last: whether none was left.
-- It takes the lock before its snapshot, so that it sees what the session before has committed.
-- Raises invalid_transaction_state if it is not the only work of its transaction.
--
-- A reader whose statement was planned before a partition existed would not find the events that
-- move into it, and with a later snapshot not find them in the queue either. So partitions are made
-- a week ahead. If one is missing all the same, this only makes it, and the next call moves.
--
-- The floor of the queue rises in three calls. The first one notes the last event_id that was given
-- out, a later one its own transaction id: whoever got an event_id up to then has a lower one. When
-- all transactions before that id had ended before a call began to look, and the call has moved all
-- events that it saw, no event up to the noted one is left. An id of another server, in a history
-- that was restored, is noted anew.
CREATE FUNCTION sequence_task_events(most integer, OUT sequenced integer, OUT is_last boolean)
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path FROM CURRENT
SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    state task_log_state;
    former task_log_state;
    before pg_snapshot;
    taken bigint[];
    oldest timestamptz;
    was_missing boolean;
BEGIN
    PERFORM require_own_transaction();
    IF NOT pg_try_advisory_xact_lock(hashtext('sequence_task_events')) THEN
        RETURN;
    END IF;
    before := pg_current_snapshot();
    PERFORM note_task_timeline();
    PERFORM make_event_partition(now() + interval '7 days');
    SELECT * INTO STRICT state FROM task_log_state;
    former := state;

    taken := ARRAY(
        SELECT event_id
        FROM task_event_queue
        WHERE event_id >= state.queue_floor
        ORDER BY event_id
        LIMIT most
    );
    sequenced := cardinality(taken);
    is_last := sequenced < most;
    IF sequenced > 0 THEN
        SELECT min(held), bool_or(make_event_partition(held)) INTO oldest, was_missing
        FROM (
            SELECT min(at) AS held
            FROM task_event_queue
            WHERE event_id = ANY(taken)
            GROUP BY date_trunc('month', at, 'UTC')
        ) AS months;
        IF was_missing THEN
            sequenced := 0;
            is_last := FALSE;
            RETURN;
        END IF;
        PERFORM set_config('audit.is_sequencing', 'on', TRUE);
        WITH moved AS (
            DELETE FROM task_event_queue WHERE event_id = ANY(taken) RETURNING *
        )

        INSERT INTO task_events (
            position, event_id, at, kind, task_id, created_at, project_id, created_by,
            status, services_touched, intent, before_status, before_services, before_intent,
            actor, request_id, db_role, salt, content, was
        )
        SELECT
            state.size + row_number() OVER (ORDER BY event_id) - 1,
            event_id, at, kind, task_id, created_at, project_id, created_by,
            status, services_touched, intent, before_status, before_services, before_intent,
            actor, request_id, db_role, salt, content, was
        FROM moved
        ORDER BY event_id;
        PERFORM set_config('audit.is_sequencing', '', TRUE);
        state.size := state.size + sequenced;
        state.uncounted_since := least(state.uncounted_since, oldest);
    END IF;

    IF state.next_floor IS NULL THEN
        state.next_floor := NULLIF(
            greatest(
                pg_sequence_last_value('task_event_queue_event_id_seq'), state.queue_floor - 1
            ),
            state.queue_floor - 1
        );
    ELSIF state.next_floor_xid IS NULL OR state.next_floor_xid >= pg_snapshot_xmax(before) THEN
        state.next_floor_xid := pg_current_xact_id();
    ELSIF is_last AND pg_snapshot_xmin(before) >= state.next_floor_xid THEN
        state.queue_floor := state.next_floor + 1;
        state.next_floor := NULL;
        state.next_floor_xid := NULL;
    END IF;
    IF state IS DISTINCT FROM former THEN
        PERFORM append_task_log_mark(state);
    END IF;
END
$$;
