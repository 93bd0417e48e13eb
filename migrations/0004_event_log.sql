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
        RAISE EXCEPTION 'counts are folded and rebuilt in a READ COMMITTED transaction of its own'
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
