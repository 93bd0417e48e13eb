-- What statements call to read the counts, and what a cache needs to know of changes.
--
-- depends: 0005_counts

DO $$ BEGIN
    PERFORM set_config('search_path', quote_ident(current_schema()) || ', pg_temp', TRUE);
END $$;

-- The finest bucket of a service that holds a time, as a half-open range.
CREATE FUNCTION count_bucket(
    counted text, held timestamptz, OUT since timestamptz, OUT until timestamptz
)
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    at_grain task_grain := 'month';
BEGIN
    LOOP
        since := bucket_of(at_grain, held);
        EXIT WHEN at_grain = 'second' OR since = held OR NOT EXISTS (
            SELECT
            FROM task_count_splits AS split
            WHERE split.service = counted
                AND split.grain = at_grain
                AND split.bucket = count_bucket.since
        );
        at_grain := finer(at_grain);
    END LOOP;
    until := bucket_after(at_grain, since);
END
$$;

-- The first boundary at or after a time from which counts are kept: the tasks between the two are
-- counted from the rows. NULL for NULL.
CREATE FUNCTION count_edge(counted text, held timestamptz) RETURNS timestamptz
LANGUAGE sql STABLE
RETURN (
    SELECT CASE WHEN bucket.since = held THEN held ELSE bucket.until END
    FROM count_bucket(counted, held) AS bucket
);

-- How many tasks were created at or after a boundary that count_edge returned; NULL: ever.
--
-- counted: a service; '' means all tasks. statuses, intents: any of them; NULL: any. Returns NULL
-- if the boundary is none of this service's.
CREATE FUNCTION count_tasks_from(
    counted text, statuses task_status[], intents text[], edge timestamptz
) RETURNS bigint
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    edges timestamptz[];
    at_grain task_grain;
    last_edge timestamptz := COALESCE(edge, '-infinity');
    state task_log_state;
    logged bigint;
BEGIN
    SELECT * INTO STRICT state FROM task_log_state;
    -- From the edge on by seconds to the next minute, by minutes to the next hour, and so on.
    FOREACH at_grain IN ARRAY '{second,minute,hour,day,month,year}'::task_grain[] LOOP
        IF edge IS NOT NULL AND bucket_of(at_grain, last_edge) < last_edge THEN
            IF last_edge = edge AND at_grain <> 'year' AND NOT EXISTS (
                SELECT
                FROM task_count_splits AS split
                WHERE split.service = counted
                    AND split.grain = at_grain
                    AND split.bucket = bucket_of(at_grain, edge)
            ) THEN
                RETURN NULL;
            END IF;
            last_edge := bucket_after(at_grain, bucket_of(at_grain, last_edge));
        END IF;
        edges := edges || last_edge;
    END LOOP;
    -- A statement of its own, since to begin it takes longer than to find that it has no rows.
    IF state.counted < state.size THEN
        SELECT sum(n) INTO logged
        FROM logged_task_changes(state.counted, NULL, state.uncounted_since)
        WHERE (edge IS NULL OR created_at >= edge)
            AND (counted = '' OR services_touched @> ARRAY[counted])
            AND (statuses IS NULL OR status = ANY(statuses))
            AND (intents IS NULL OR intent = ANY(intents));
    END IF;
    RETURN COALESCE(logged, 0) + (
        SELECT COALESCE(sum(counts.n), 0)
        FROM unnest(
            '{second,minute,hour,day,month,year}'::task_grain[], edges,
            edges[2:] || 'infinity'::timestamptz
        ) AS part (grain, since, until)
        CROSS JOIN LATERAL (
            SELECT sum(n) AS n
            FROM task_counts
            WHERE service = counted
                AND grain = part.grain
                AND bucket >= part.since
                AND bucket < part.until
                AND (statuses IS NULL OR status = ANY(statuses))
                AND (intents IS NULL OR intent = ANY(intents))
        ) AS counts
        WHERE part.since < part.until
    ) + (
        SELECT COALESCE(sum(n), 0)
        FROM queued_task_changes(state.queue_floor)
        WHERE (edge IS NULL OR created_at >= edge)
            AND (counted = '' OR services_touched @> ARRAY[counted])
            AND (statuses IS NULL OR status = ANY(statuses))
            AND (intents IS NULL OR intent = ANY(intents))
    );
END
$$;

-- The finest bucket that holds the task of a rank, where the newest task has rank 1. Both are NULL
-- if there are fewer tasks. It reads no deltas: it says where to look, and may be out of date.
CREATE FUNCTION locate_task(
    counted text, statuses task_status[], intents text[], rank numeric,
    OUT since timestamptz, OUT until timestamptz
)
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    at_grain task_grain := 'year';
    left_over numeric := rank;
    found_bucket timestamptz;
    found_newer numeric;
    low timestamptz := '-infinity';
    high timestamptz := 'infinity';
BEGIN
    LOOP
        SELECT running.bucket, running.n - running.own
        INTO found_bucket, found_newer
        FROM (
            SELECT bucket, sum(n) AS own, sum(sum(n)) OVER (ORDER BY bucket DESC) AS n
            FROM task_counts
            WHERE service = counted
                AND grain = at_grain
                AND bucket >= low
                AND bucket < high
                AND (statuses IS NULL OR status = ANY(statuses))
                AND (intents IS NULL OR intent = ANY(intents))
            GROUP BY bucket
            ORDER BY bucket DESC
        ) AS running
        WHERE running.n >= left_over
        LIMIT 1;
        EXIT WHEN NOT FOUND;
        left_over := left_over - found_newer;
        low := found_bucket;
        high := bucket_after(at_grain, found_bucket);
        since := low;
        until := high;
        EXIT WHEN at_grain = 'second' OR at_grain > 'year' AND NOT EXISTS (
            SELECT
            FROM task_count_splits AS split
            WHERE split.service = counted AND split.grain = at_grain AND split.bucket = low
        );
        at_grain := finer(at_grain);
    END LOOP;
END
$$;

-- Where in time the tasks of a page are; one row. sql/counts/locate_page.sql describes it.
--
-- A function keeps the plan of its query for the life of a session. A statement of the service is
-- planned each time, which would take longer than to run this one.
CREATE FUNCTION locate_page(
    of_service text,
    any_status task_status[],
    any_intent text[],
    from_time timestamptz,
    to_time timestamptz,
    cursor_time timestamptz,
    tasks_before bigint,
    tasks_wanted int
)
RETURNS TABLE (
    since_edge timestamptz, until_edge timestamptz, is_counted boolean,
    page_since timestamptz, page_until timestamptz, skipped bigint, is_sparse boolean
)
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
DECLARE
    state task_log_state;
    added bigint;
    removed bigint;
    logged_added bigint := 0;
    logged_removed bigint := 0;
BEGIN
    SELECT * INTO STRICT state FROM task_log_state;
    -- locate_task does not know the deltas: they may move a task by so many ranks.
    SELECT count(*) FILTER (WHERE n > 0), count(*) FILTER (WHERE n < 0)
    INTO added, removed
    FROM queued_task_changes(state.queue_floor)
    WHERE
        (of_service = '' OR services_touched @> ARRAY[of_service])
        AND (any_status IS NULL OR status = ANY(any_status))
        AND (any_intent IS NULL OR intent = ANY(any_intent));
    IF state.counted < state.size THEN
        SELECT count(*) FILTER (WHERE n > 0), count(*) FILTER (WHERE n < 0)
        INTO logged_added, logged_removed
        FROM logged_task_changes(state.counted, NULL, state.uncounted_since)
        WHERE
            (of_service = '' OR services_touched @> ARRAY[of_service])
            AND (any_status IS NULL OR status = ANY(any_status))
            AND (any_intent IS NULL OR intent = ANY(any_intent));
    END IF;
    RETURN QUERY
    WITH edges AS MATERIALIZED (
        SELECT
            count_edge(of_service, from_time) AS since_edge,
            until_bucket.since AS until_edge,
            CASE
                WHEN cursor_time IS NULL THEN until_bucket.since
                ELSE after_bucket.since
            END AS newest_edge
        FROM count_bucket(of_service, to_time) AS until_bucket
        CROSS JOIN count_bucket(of_service, cursor_time) AS after_bucket
    ),

    ranks AS MATERIALIZED (
        SELECT
            tasks_before + 1 - added - logged_added
            + CASE
                WHEN to_time IS NULL THEN 0
                ELSE count_tasks_from(of_service, any_status, any_intent, count_edge(of_service, to_time))
            END AS first_rank,
            tasks_before + tasks_wanted + 1 + removed + logged_removed
            + CASE
                WHEN newest_edge IS NULL THEN 0
                ELSE count_tasks_from(of_service, any_status, any_intent, newest_edge)
            END AS last_rank
        FROM edges
    ),

    place AS MATERIALIZED (
        SELECT
            CASE
                WHEN cursor_time IS NULL AND first_rank >= 1 AND newest.until IS NULL THEN 'infinity'
                WHEN from_time IS NULL OR oldest.since > from_time THEN oldest.since
            END AS page_since,
            CASE
                WHEN
                    cursor_time IS NULL AND first_rank >= 1
                    AND (to_time IS NULL OR newest.until < to_time)
                    THEN newest.until
            END AS page_until
        FROM ranks
        CROSS JOIN locate_task(of_service, any_status, any_intent, first_rank) AS newest
        CROSS JOIN locate_task(of_service, any_status, any_intent, last_rank) AS oldest
    ),

    newer AS MATERIALIZED (
        SELECT
            CASE
                WHEN COALESCE(page_until, newest_edge) IS NULL THEN 0
                ELSE
                    count_tasks_from(
                        of_service, any_status, any_intent, COALESCE(page_until, newest_edge)
                    )
            END AS matching,
            CASE
                WHEN COALESCE(page_until, newest_edge) IS NULL THEN 0
                ELSE count_tasks_from('', NULL, NULL, COALESCE(page_until, newest_edge))
            END AS passed
        FROM place
        CROSS JOIN edges
    )

    SELECT
        since_edge,
        until_edge,
        COALESCE(since_edge <= until_edge, TRUE) AS is_counted,
        page_since,
        page_until,
        CASE
            WHEN page_until IS NULL THEN 0
            WHEN until_edge IS NULL THEN newer.matching
            ELSE newer.matching - count_tasks_from(of_service, any_status, any_intent, until_edge)
        END AS skipped,
        COALESCE(
            100 * (
                count_tasks_from(of_service, any_status, any_intent, COALESCE(page_since, since_edge))
                - newer.matching
            ) < (
                count_tasks_from('', NULL, NULL, COALESCE(page_since, count_edge('', from_time)))
                - newer.passed
            ),
            FALSE
        ) AS is_sparse
    FROM edges
    CROSS JOIN place
    CROSS JOIN newer;
END
$$;

-- How events change the number of tasks that match a filter, by day: the events of the log from
-- position first on, and those of the queue. A filter by outcome is left out, since events do not
-- tell it; the days of the result are then those that may have changed.
CREATE FUNCTION tally_task_changes(
    first bigint,
    any_status task_status[],
    all_services text[],
    any_intent text[],
    from_time timestamptz,
    to_time timestamptz,
    person text,
    project uuid
) RETURNS TABLE (day timestamptz, is_queued boolean, n bigint)
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
DECLARE
    state task_log_state;
BEGIN
    SELECT * INTO STRICT state FROM task_log_state;
    RETURN QUERY
    SELECT bucket_of('day', created_at), TRUE, sum(n)
    FROM queued_task_changes(state.queue_floor)
    WHERE (any_status IS NULL OR status = ANY(any_status))
        AND (all_services IS NULL OR services_touched @> all_services)
        AND (any_intent IS NULL OR intent = ANY(any_intent))
        AND (from_time IS NULL OR created_at >= from_time)
        AND (to_time IS NULL OR created_at < to_time)
        AND (person IS NULL OR created_by = person)
        AND (project IS NULL OR project_id = project)
    GROUP BY 1;
    IF first < state.size THEN
        RETURN QUERY
        SELECT bucket_of('day', created_at), FALSE, sum(n)
        FROM logged_task_changes(
            first,
            NULL,
            CASE WHEN first >= state.counted THEN state.uncounted_since ELSE '-infinity' END
        )
        WHERE (any_status IS NULL OR status = ANY(any_status))
            AND (all_services IS NULL OR services_touched @> all_services)
            AND (any_intent IS NULL OR intent = ANY(any_intent))
            AND (from_time IS NULL OR created_at >= from_time)
            AND (to_time IS NULL OR created_at < to_time)
            AND (person IS NULL OR created_by = person)
            AND (project IS NULL OR project_id = project)
        GROUP BY 1;
    END IF;
END
$$;

-- Save a tally for other processes. The tallies that were saved last are kept, at most so many.
CREATE FUNCTION save_task_tally(
    of_filter bytea, counted_since timestamptz, counted_to bigint, counted json, most bigint
) RETURNS void
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path FROM CURRENT
AS $$
BEGIN
    INSERT INTO task_tallies (filter, since, position, days)
    VALUES (of_filter, counted_since, counted_to, counted)
    ON CONFLICT (filter) DO UPDATE
    SET since = excluded.since, position = excluded.position, days = excluded.days, saved_at = now();
    DELETE FROM task_tallies
    WHERE filter IN (
        SELECT filter FROM task_tallies ORDER BY saved_at DESC OFFSET most FOR UPDATE SKIP LOCKED
    );
END
$$;

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
