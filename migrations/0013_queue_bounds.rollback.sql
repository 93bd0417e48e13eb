-- The floor of the queue is as it was at the migration. The sequencer raises it again.
DO $$ BEGIN
    PERFORM set_config('search_path', quote_ident(current_schema()) || ', pg_temp', TRUE);
    PERFORM pg_advisory_xact_lock(hashtext('sequence_task_events'));
END $$;

-- All events. event_id orders the events of a task; position is NULL in the queue.
CREATE OR REPLACE VIEW task_history WITH (security_invoker = TRUE) AS
SELECT
    position, event_id, at, kind, task_id, status, actor, request_id, db_role, salt, content, was
FROM task_events
UNION ALL
SELECT
    NULL AS position, event_id, at, kind, task_id, status, actor, request_id, db_role, salt,
    content, was
FROM task_event_queue
WHERE event_id >= (SELECT task_log_state.queue_floor FROM task_log_state);

-- How many events there are, with a position or not.
--
-- Each new or changed task adds an event in the same transaction, and no event is removed. So two
-- snapshots with the same number of events of the same server have the same tasks.
--
-- Without statistics the planner takes the floor for the middle of the queue, and would read all of
-- it, with its dead rows.
CREATE OR REPLACE FUNCTION task_event_count() RETURNS bigint
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

-- The same of the events in the queue, which has none before its floor.
CREATE OR REPLACE FUNCTION queued_task_changes(queue_floor bigint)
RETURNS TABLE (
    created_at timestamptz, status task_status, services_touched text[], intent text, n integer,
    project_id uuid, created_by text
)
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT
        event.created_at, fact.status, fact.services_touched, fact.intent, fact.n,
        event.project_id, event.created_by
    FROM task_event_queue AS event
    CROSS JOIN
        LATERAL (
            VALUES
            (event.status, event.services_touched, event.intent, 1),
            (event.before_status, event.before_services, event.before_intent, -1)
        ) AS fact (status, services_touched, intent, n)
    WHERE
        event.event_id >= queue_floor
        AND event.kind <> 'imported'
        AND fact.status IS NOT NULL;
END;

-- How many tasks were created at or after each of some boundaries that count_edge returned.
--
-- counted: a service; '' means all tasks. statuses, intents: any of them; NULL: any. -infinity and
-- infinity are boundaries too. The result for NULL, or for a boundary that is none of this
-- service's, is NULL.
CREATE OR REPLACE FUNCTION count_tasks_from_each(
    counted text, statuses task_status[], intents text[], edges timestamptz[]
) RETURNS bigint[]
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    state task_log_state;
    is_queued boolean;
    edge timestamptz;
    coarse task_grain;
    part_since timestamptz;
    part_until timestamptz;
    part bigint;
    total bigint;
    totals bigint[] := '{}';
BEGIN
    SELECT * INTO STRICT state FROM task_log_state;
    is_queued := EXISTS (SELECT FROM task_event_queue WHERE event_id >= state.queue_floor);
    FOREACH edge IN ARRAY edges LOOP
        total := CASE WHEN edge IS NOT NULL THEN 0 END;
        part_since := edge;
        -- By seconds to the next minute, by minutes to the next hour, and so on, at last by years.
        -- A statement takes longer to begin than to run, so each runs only if it has something to read.
        FOREACH coarse IN ARRAY '{second,minute,hour,day,month,year,NULL}'::task_grain[] LOOP
            part_until := COALESCE(bucket_of(coarse, part_since), 'infinity');
            CONTINUE WHEN part_until = part_since OR total IS NULL;
            IF coarse IS NOT NULL THEN
                IF part_since = edge AND coarse <> 'year' AND NOT EXISTS (
                    SELECT
                    FROM task_count_splits AS split
                    WHERE split.service = counted
                        AND split.grain = coarse
                        AND split.bucket = part_until
                ) THEN
                    total := NULL;
                END IF;
                part_until := bucket_after(coarse, part_until);
            END IF;
            SELECT sum(n) INTO part
            FROM task_counts
            WHERE service = counted
                AND grain = COALESCE(finer(coarse), 'year')
                AND bucket >= part_since
                AND bucket < part_until
                AND (statuses IS NULL OR status = ANY(statuses))
                AND (intents IS NULL OR intent = ANY(intents));
            total := total + COALESCE(part, 0);
            part_since := part_until;
        END LOOP;
        IF is_queued THEN
            SELECT sum(n) INTO part
            FROM queued_task_changes(state.queue_floor)
            WHERE created_at >= edge
                AND (counted = '' OR services_touched @> ARRAY[counted])
                AND (statuses IS NULL OR status = ANY(statuses))
                AND (intents IS NULL OR intent = ANY(intents));
            total := total + COALESCE(part, 0);
        END IF;
        IF state.counted < state.size THEN
            SELECT sum(n) INTO part
            FROM logged_task_changes(state.counted, NULL, state.uncounted_since)
            WHERE created_at >= edge
                AND (counted = '' OR services_touched @> ARRAY[counted])
                AND (statuses IS NULL OR status = ANY(statuses))
                AND (intents IS NULL OR intent = ANY(intents));
            total := total + COALESCE(part, 0);
        END IF;
        totals := totals || total;
    END LOOP;
    RETURN totals;
END
$$;

-- Which events a reader has not seen yet; `sql/history/read_changes.sql` describes it. An imported
-- task was there before, as it is.
--
-- The function keeps the plans of its statements for the session, so that it takes a tenth of a
-- millisecond. Its result is of the one snapshot of the statement that calls it, as it is STABLE.
CREATE OR REPLACE FUNCTION read_task_changes(
    known_size bigint,
    seen_to bigint,
    gaps bigint[],
    most integer,
    most_documents integer,
    OUT log_size bigint,
    OUT queued bigint,
    OUT newest_queued bigint,
    OUT changes json,
    OUT documents json
)
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
SET enable_hashjoin = off
SET enable_mergejoin = off
SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    state task_log_state;
    events json[] := '{}';
    first_at timestamptz;
    last_at timestamptz;
BEGIN
    SELECT * INTO STRICT state FROM task_log_state;
    log_size := state.size;
    newest_queued := COALESCE(
        (SELECT max(event_id) FROM task_event_queue WHERE event_id >= state.queue_floor), 0
    );
    -- During an import the queue may hold millions of events.
    SELECT count(*)
    INTO queued
    FROM (
        SELECT FROM task_event_queue WHERE event_id >= state.queue_floor LIMIT 10 * most + 1
    ) AS counted;
    -- Most of these events are seen already, in the queue, so allow more of them.
    IF known_size IS NULL OR queued > 10 * most OR log_size - known_size > 10 * most THEN
        RETURN;
    END IF;
    IF newest_queued > seen_to OR gaps <> '{}' THEN
        events := ARRAY(
            SELECT
                json_build_array(
                    event_id, task_id, created_at, project_id, created_by,
                    status, services_touched, intent,
                    CASE kind WHEN 'imported' THEN status ELSE before_status END,
                    CASE kind WHEN 'imported' THEN services_touched ELSE before_services END,
                    CASE kind WHEN 'imported' THEN intent ELSE before_intent END
                )
            FROM task_event_queue
            WHERE
                event_id >= state.queue_floor
                AND (event_id > seen_to OR event_id = ANY(gaps))
            LIMIT most + 1
        );
    END IF;
    IF log_size > known_size THEN
        events := events || ARRAY(
            SELECT
                json_build_array(
                    event_id, task_id, created_at, project_id, created_by,
                    status, services_touched, intent,
                    CASE kind WHEN 'imported' THEN status ELSE before_status END,
                    CASE kind WHEN 'imported' THEN services_touched ELSE before_services END,
                    CASE kind WHEN 'imported' THEN intent ELSE before_intent END
                )
            FROM task_events
            WHERE
                position >= known_size
                AND position < log_size
                AND (event_id > seen_to OR event_id = ANY(gaps))
            LIMIT most + 1
        );
    END IF;
    IF cardinality(events) <= most THEN
        changes := to_json(events);
    END IF;
    IF cardinality(events) BETWEEN 1 AND most_documents THEN
        SELECT min((event ->> 2)::timestamptz), max((event ->> 2)::timestamptz)
        INTO first_at, last_at
        FROM unnest(events) AS event;
        SELECT json_object_agg(task_id, document)
        INTO documents
        FROM (
            SELECT changed.task_id, listed.document
            FROM (
                SELECT DISTINCT
                    (event ->> 1)::uuid AS task_id,
                    (event ->> 2)::timestamptz AS created_at
                FROM unnest(events) AS event
            ) AS changed
            CROSS JOIN LATERAL (
                SELECT listed_task(task) AS document
                FROM tasks AS task
                WHERE
                    task.created_at = changed.created_at
                    AND task.task_id = changed.task_id
                    -- So the statement opens only the partitions between these times.
                    AND task.created_at BETWEEN first_at AND last_at
                    -- A long task would take long.
                    AND pg_column_size(ROW(
                        task.request_text, task.services_touched, task.outcome, task.error_message
                    )) <= 4096
                OFFSET 0
            ) AS listed
        ) AS listed
        WHERE octet_length(document) <= 8192;
    END IF;
END
$$;

DROP FUNCTION append_task_log_mark;

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

REVOKE ALL ON FUNCTION append_task_log_mark FROM PUBLIC; -- noqa: CP02

-- Move up to `most` events from the queue to the log, and give them the next positions.
--
-- sequenced: how many were moved; NULL if another session is at it. is_last: whether none was left.
-- It takes the lock before its snapshot, so that it sees what the session before has committed.
-- Raises invalid_transaction_state if it is not the only work of its transaction.
--
-- A reader whose statement was planned before a partition existed would not find the events that
-- move into it, and with a later snapshot not find them in the queue either. So partitions are made
-- a week ahead. If one is missing all the same, this only makes it, and the next call moves.
--
-- The floor of the queue rises in three calls. The first call notes the last event_id that was
-- given out. A later call notes its own transaction id. Each transaction that got an event_id up to
-- the noted one has a lower transaction id. A third call raises the floor if all these transactions
-- had ended before it read the queue, and it has moved all events that it read. In a history that
-- was restored, it notes an id of another server anew.
CREATE OR REPLACE FUNCTION sequence_task_events(
    most integer, OUT sequenced integer, OUT is_last boolean
)
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

DROP FUNCTION history_of_task;
DROP FUNCTION measure_task_queue;
DROP FUNCTION queued_task_events;
DROP FUNCTION read_task_queue_bounds;
DROP TYPE task_queue_bounds;

ALTER TABLE task_log_marks
DROP COLUMN first_xid,
DROP COLUMN open_xids,
DROP COLUMN first_id,
DROP COLUMN last_id,
DROP COLUMN made_by;

ALTER TABLE task_event_queue DROP COLUMN xid;

-- Give the transaction an id before the first event gets one; sequence_task_events relies on it.
CREATE FUNCTION assign_transaction_id() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_current_xact_id();
    RETURN NULL;
END
$$;

REVOKE ALL ON FUNCTION assign_transaction_id FROM PUBLIC; -- noqa: CP02

CREATE TRIGGER assign_transaction_id BEFORE INSERT ON task_event_queue
FOR EACH STATEMENT EXECUTE FUNCTION assign_transaction_id();

ALTER TABLE task_event_queue ENABLE ALWAYS TRIGGER assign_transaction_id;
