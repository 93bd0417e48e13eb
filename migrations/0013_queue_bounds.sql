-- Looks at the queue of the event log read no moved rows, however long a transaction is open.
--
-- While any transaction of the server is open, VACUUM cannot remove the rows that the sequencer has
-- moved since, and queue_floor cannot rise. So each event of the queue now has the id of its
-- transaction, and the sequencer notes which transactions may still have events there. A look finds
-- these by index. docs/decisions/0059-queue-bounds.md says why.
--
-- Version 0.1.0 reads queue_floor, which stays as it was at this migration and is still right. The
-- rollback goes on from there.
--
-- depends: 0012_exports

DO $$ BEGIN
    PERFORM set_config('search_path', quote_ident(current_schema()) || ', pg_temp', TRUE);
    -- No sequencer runs meanwhile.
    PERFORM pg_advisory_xact_lock(hashtext('sequence_task_events'));
END $$;

-- Which events the queue has: those of the transaction first_xid and of later ones, those of
-- open_xids, and those of other transactions with an event_id from first_id to last_id. These two
-- are NULL unless the sequencer is moving a backlog in portions.
CREATE TYPE task_queue_bounds AS (
    first_xid xid8,
    open_xids xid8 [],
    first_id bigint,
    last_id bigint
);

-- made_by is the transaction that has added the row.
ALTER TABLE task_log_marks
ADD COLUMN first_xid xid8 NOT NULL DEFAULT '0',
ADD COLUMN open_xids xid8[] NOT NULL DEFAULT '{}',
ADD COLUMN first_id bigint,
ADD COLUMN last_id bigint,
ADD COLUMN made_by xid8 NOT NULL DEFAULT pg_current_xact_id();

-- The events that are in the queue now get the id of this transaction.
ALTER TABLE task_event_queue ADD COLUMN xid xid8 NOT NULL DEFAULT pg_current_xact_id();

CREATE INDEX task_event_queue_by_xid ON task_event_queue (xid);

-- The default of xid does the same.
DROP TRIGGER assign_transaction_id ON task_event_queue;
DROP FUNCTION assign_transaction_id;

-- The bounds of the queue; one row.
--
-- The transaction ids of another server mean nothing here. If the history was restored from a dump,
-- the restore has added the row again, so made_by is not who added it. Then the queue is unbounded.
CREATE FUNCTION read_task_queue_bounds() RETURNS SETOF task_queue_bounds
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT
        CASE WHEN xmin = made_by::xid THEN first_xid ELSE '0' END,
        CASE WHEN xmin = made_by::xid THEN open_xids ELSE '{}' END,
        CASE WHEN xmin = made_by::xid THEN first_id END,
        CASE WHEN xmin = made_by::xid THEN last_id END
    FROM task_log_marks
    ORDER BY mark DESC
    LIMIT 1;
END;

-- The events in the queue, in no order.
--
-- Each part is one search of an index. OFFSET 0 keeps PostgreSQL from searching another index for
-- what else the caller asks of events: it would walk over all moved rows there. The upper limit of
-- the first part excludes nothing. With it the planner expects few rows, and does not read the
-- whole table.
CREATE FUNCTION queued_task_events() RETURNS SETOF task_event_queue
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT event.*
    FROM read_task_queue_bounds() AS bounds
    CROSS JOIN
        LATERAL (
            (
                SELECT *
                FROM task_event_queue
                WHERE xid BETWEEN bounds.first_xid AND '18446744073709551615'
                OFFSET 0
            )
            UNION ALL
            (
                SELECT *
                FROM task_event_queue
                WHERE xid = ANY(bounds.open_xids)
                OFFSET 0
            )
            UNION ALL
            SELECT *
            FROM (
                SELECT *
                FROM task_event_queue
                WHERE event_id BETWEEN bounds.first_id AND bounds.last_id
                OFFSET 0
            ) AS backlog
            WHERE xid < bounds.first_xid AND xid <> ALL(bounds.open_xids)
        ) AS event;
END;

-- All events. event_id orders the events of a task; position is NULL in the queue.
CREATE OR REPLACE VIEW task_history WITH (security_invoker = TRUE) AS
SELECT
    position, event_id, at, kind, task_id, status, actor, request_id, db_role, salt, content, was
FROM task_events
UNION ALL
SELECT
    NULL AS position, event_id, at, kind, task_id, status, actor, request_id, db_role, salt,
    content, was
FROM queued_task_events();

-- The events of a task after the event after_id. The function keeps its plan for the session: the
-- search of the partitioned log takes longer to plan than to run.
CREATE FUNCTION history_of_task(of_task uuid, after_id bigint) RETURNS SETOF task_history
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan
AS $$
BEGIN
    RETURN QUERY SELECT * FROM task_history WHERE task_id = of_task AND event_id > after_id;
END
$$;

-- How many events there are, with a position or not.
--
-- Each new or changed task adds an event in the same transaction, and no event is removed. So two
-- snapshots with the same number of events of the same server have the same tasks.
CREATE OR REPLACE FUNCTION task_event_count() RETURNS bigint
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan
AS $$
BEGIN
    RETURN task_log_size() + (SELECT count(*) FROM queued_task_events());
END
$$;

-- How many events are in the queue, and the time of the oldest one.
CREATE FUNCTION measure_task_queue(OUT queued bigint, OUT oldest_at timestamptz)
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan
AS $$
BEGIN
    SELECT count(*), min(at) INTO queued, oldest_at FROM queued_task_events();
END
$$;

-- What the events in the queue change of the counts, as logged_task_changes. The floor is not used
-- any more.
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
    FROM queued_task_events() AS event
    CROSS JOIN
        LATERAL (
            VALUES
            (event.status, event.services_touched, event.intent, 1),
            (event.before_status, event.before_services, event.before_intent, -1)
        ) AS fact (status, services_touched, intent, n)
    WHERE
        event.kind <> 'imported'
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
    is_queued := EXISTS (SELECT FROM queued_task_events());
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
SET enable_bitmapscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    events json[] := '{}';
    first_at timestamptz;
    last_at timestamptz;
BEGIN
    log_size := task_log_size();
    -- During an import the queue may hold millions of events.
    SELECT count(*), COALESCE(max(event_id), 0)
    INTO queued, newest_queued
    FROM (SELECT event_id FROM queued_task_events() LIMIT 10 * most + 1) AS counted;
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
            FROM queued_task_events()
            WHERE event_id > seen_to OR event_id = ANY(gaps)
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

-- Append a row to task_log_marks. The caller holds the lock of the sequencer. If bounds is NULL,
-- the bounds of the queue stay as they are.
CREATE FUNCTION append_task_log_mark(
    state task_log_state, bounds task_queue_bounds DEFAULT NULL
) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
BEGIN
    IF bounds IS NULL THEN
        SELECT * INTO STRICT bounds FROM read_task_queue_bounds();
    END IF;
    INSERT INTO task_log_marks (
        mark, size, queue_floor, next_floor, next_floor_xid, counted, uncounted_since,
        first_xid, open_xids, first_id, last_id
    )
    VALUES (
        state.mark + 1, state.size, state.queue_floor, state.next_floor, state.next_floor_xid,
        state.counted, state.uncounted_since,
        bounds.first_xid, bounds.open_xids, bounds.first_id, bounds.last_id
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
-- When a call has moved all events that it saw, the queue has no event of a transaction that had
-- ended before the call began to look. If there are more than it may move, the next calls move the
-- rest of the events of these transactions first, by their event_id, and nothing else. An event of
-- another transaction may have a lower event_id. But then no event of the same task with a higher
-- one is among the rest: its transaction waited for the other one to end.
CREATE OR REPLACE FUNCTION sequence_task_events(
    most integer, OUT sequenced integer, OUT is_last boolean
)
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path FROM CURRENT
SET enable_bitmapscan = off
SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    state task_log_state;
    bounds task_queue_bounds;
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
    SELECT * INTO STRICT bounds FROM read_task_queue_bounds();

    IF bounds.first_id IS NULL AND bounds.first_xid > '0' THEN
        taken := ARRAY(SELECT event_id FROM queued_task_events() ORDER BY event_id LIMIT most);
    ELSE
        -- The rest of a backlog; of a queue without bounds, anything.
        taken := ARRAY(
            SELECT event_id
            FROM task_event_queue
            WHERE
                event_id BETWEEN COALESCE(bounds.first_id, 0)
                AND COALESCE(bounds.last_id, 9223372036854775807)
                AND (
                    bounds.first_xid = '0'
                    OR (xid < bounds.first_xid AND xid <> ALL(bounds.open_xids))
                )
            ORDER BY event_id
            LIMIT most
        );
    END IF;
    sequenced := cardinality(taken);
    is_last := sequenced < most AND bounds.first_id IS NULL;
    IF sequenced = 0 AND bounds.first_id IS NULL AND bounds.first_xid > '0' THEN
        RETURN;
    END IF;
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

    IF bounds.first_id IS NOT NULL THEN
        bounds.first_id := CASE WHEN sequenced = most THEN taken[most] + 1 END;
    ELSIF is_last OR bounds.first_xid > '0' THEN
        IF NOT is_last THEN
            bounds.last_id := (SELECT max(event_id) FROM queued_task_events());
            bounds.first_id := CASE WHEN bounds.last_id > taken[most] THEN taken[most] + 1 END;
        END IF;
        bounds.first_xid := pg_snapshot_xmax(before);
        bounds.open_xids := ARRAY(SELECT pg_snapshot_xip(before));
    END IF;
    PERFORM append_task_log_mark(state, bounds);
    IF NOT is_last AND bounds.first_id IS NULL THEN
        is_last := NOT EXISTS (SELECT FROM queued_task_events());
    END IF;
END
$$;
