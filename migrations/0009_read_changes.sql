-- What a cache of responses needs to know of the event log.
--
-- depends: 0008_event_log

DO $$ BEGIN
    PERFORM set_config('search_path', quote_ident(current_schema()) || ', pg_temp', TRUE);
END $$;

-- Which events a reader has not seen yet; `sql/history/read_changes.sql` describes it.
--
-- The function keeps the plans of its statements for the session, so that it takes a tenth of a
-- millisecond. Its result is of the one snapshot of the statement that calls it, as it is STABLE.
CREATE FUNCTION read_task_changes(
    known_size bigint,
    seen_to bigint,
    gaps bigint[],
    most integer,
    OUT log_size bigint,
    OUT queued bigint,
    OUT newest_queued bigint,
    OUT changes json
)
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    state task_log_state;
    events json[] := '{}';
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
                    event_id, created_at, project_id, created_by,
                    status, services_touched, intent, before_status, before_services, before_intent
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
                    event_id, created_at, project_id, created_by,
                    status, services_touched, intent, before_status, before_services, before_intent
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
END
$$;
