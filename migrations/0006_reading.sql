-- What statements call to read the counts, and what a cache needs to know of changes.
--
-- depends: 0005_counts

DO $$ BEGIN
    PERFORM set_config('search_path', quote_ident(current_schema()) || ', pg_temp', TRUE);
END $$;

-- The finest bucket of a service that holds a time, as a half-open range; NULL for NULL.
CREATE FUNCTION count_bucket(
    counted text, held timestamptz, OUT since timestamptz, OUT until timestamptz
)
LANGUAGE plpgsql STABLE STRICT
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
LANGUAGE plpgsql STABLE STRICT
SET search_path FROM CURRENT
AS $$
DECLARE
    bucket record := count_bucket(counted, held);
BEGIN
    RETURN CASE WHEN bucket.since = held THEN held ELSE bucket.until END;
END
$$;

-- How many tasks were created at or after each of some boundaries that count_edge returned.
--
-- counted: a service; '' means all tasks. statuses, intents: any of them; NULL: any. -infinity and
-- infinity are boundaries too. The result for NULL, or for a boundary that is none of this
-- service's, is NULL.
CREATE FUNCTION count_tasks_from_each(
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

-- The same of one boundary; NULL: ever.
CREATE FUNCTION count_tasks_from(
    counted text, statuses task_status[], intents text[], edge timestamptz
) RETURNS bigint
LANGUAGE sql STABLE
RETURN (count_tasks_from_each(counted, statuses, intents, ARRAY[COALESCE(edge, '-infinity')]))[1];

-- The finest bucket that holds the task of a rank, where the newest task has rank 1; how many tasks
-- are newer than the bucket, and how many are not older. All are NULL if there are fewer tasks. It
-- reads no deltas: it says where to look, and may be out of date.
CREATE FUNCTION locate_task(
    counted text, statuses task_status[], intents text[], rank numeric,
    OUT since timestamptz, OUT until timestamptz, OUT newer bigint, OUT not_older bigint
)
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    at_grain task_grain := 'year';
    found_bucket timestamptz;
    own bigint;
    passed bigint;
    is_split boolean;
    low timestamptz := '-infinity';
    high timestamptz := 'infinity';
BEGIN
    LOOP
        SELECT
            running.bucket,
            running.own,
            COALESCE(newer, 0) + running.n,
            at_grain = 'year' OR EXISTS (
                SELECT
                FROM task_count_splits AS split
                WHERE split.service = counted
                    AND split.grain = at_grain
                    AND split.bucket = running.bucket
            )
        INTO found_bucket, own, passed, is_split
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
        WHERE running.n >= rank - COALESCE(newer, 0)
        LIMIT 1;
        EXIT WHEN NOT FOUND;
        since := found_bucket;
        until := bucket_after(at_grain, found_bucket);
        newer := passed - own;
        not_older := passed;
        EXIT WHEN at_grain = 'second' OR NOT is_split;
        at_grain := finer(at_grain);
        low := since;
        high := until;
    END LOOP;
END
$$;

-- Where in time the tasks of a page are; one row. sql/counts/locate_page.sql describes it.
--
-- A function keeps the plans of its statements for the life of a session. A statement of the
-- service is planned each time, which would take longer than to run this one.
CREATE FUNCTION locate_page(
    of_service text,
    any_status task_status[],
    any_intent text[],
    from_time timestamptz,
    to_time timestamptz,
    cursor_time timestamptz,
    tasks_before bigint,
    tasks_wanted int,
    OUT since_edge timestamptz,
    OUT until_edge timestamptz,
    OUT is_counted boolean,
    OUT page_since timestamptz,
    OUT page_until timestamptz,
    OUT skipped bigint,
    OUT is_sparse boolean
)
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    state task_log_state;
    added bigint;
    removed bigint;
    logged_added bigint;
    logged_removed bigint;
    from_until bigint := 0;
    upper_edge timestamptz;
    from_upper bigint;
    first_rank bigint;
    newest record;
    oldest record;
    matching bigint;
    passed bigint;
BEGIN
    since_edge := count_edge(of_service, from_time);
    until_edge := (count_bucket(of_service, to_time)).since;
    is_counted := COALESCE(since_edge <= until_edge, TRUE);
    skipped := 0;
    is_sparse := FALSE;
    IF NOT is_counted THEN
        RETURN;
    END IF;

    -- locate_task does not know the deltas: they may move a task by so many ranks.
    SELECT * INTO STRICT state FROM task_log_state;
    SELECT count(*) FILTER (WHERE n > 0), count(*) FILTER (WHERE n < 0)
    INTO added, removed
    FROM queued_task_changes(state.queue_floor)
    WHERE (of_service = '' OR services_touched @> ARRAY[of_service])
        AND (any_status IS NULL OR status = ANY(any_status))
        AND (any_intent IS NULL OR intent = ANY(any_intent));
    IF state.counted < state.size THEN
        SELECT count(*) FILTER (WHERE n > 0), count(*) FILTER (WHERE n < 0)
        INTO logged_added, logged_removed
        FROM logged_task_changes(state.counted, NULL, state.uncounted_since)
        WHERE (of_service = '' OR services_touched @> ARRAY[of_service])
            AND (any_status IS NULL OR status = ANY(any_status))
            AND (any_intent IS NULL OR intent = ANY(any_intent));
        added := added + logged_added;
        removed := removed + logged_removed;
    END IF;

    IF to_time IS NOT NULL THEN
        from_until := count_tasks_from(of_service, any_status, any_intent, until_edge);
    END IF;
    upper_edge := until_edge;
    from_upper := from_until;
    IF cursor_time IS NOT NULL THEN
        upper_edge := (count_bucket(of_service, cursor_time)).since;
        from_upper := count_tasks_from(of_service, any_status, any_intent, upper_edge);
    END IF;
    oldest := locate_task(
        of_service, any_status, any_intent,
        tasks_before + tasks_wanted + 1 + removed + from_upper
    );
    IF from_time IS NULL OR oldest.since > from_time THEN
        page_since := oldest.since;
    END IF;

    first_rank := tasks_before + 1 - added;
    IF from_until > 0 THEN
        first_rank := first_rank
            + count_tasks_from(of_service, any_status, any_intent, count_edge(of_service, to_time));
    END IF;
    IF cursor_time IS NULL AND first_rank >= 1 THEN
        newest := oldest;
        IF oldest.since IS NULL OR first_rank <= oldest.newer THEN
            newest := locate_task(of_service, any_status, any_intent, first_rank);
        END IF;
        IF newest.since IS NULL THEN
            page_since := 'infinity';
            RETURN;
        END IF;
        IF to_time IS NULL OR newest.until < to_time THEN
            page_until := newest.until;
            upper_edge := page_until;
            from_upper := newest.newer;
            IF added + removed > 0 THEN
                from_upper := count_tasks_from(of_service, any_status, any_intent, page_until);
            END IF;
            skipped := from_upper - from_until;
        END IF;
    END IF;

    IF of_service <> '' OR any_status IS NOT NULL OR any_intent IS NOT NULL THEN
        matching := oldest.not_older;
        IF page_since IS NULL THEN
            matching := count_tasks_from(of_service, any_status, any_intent, since_edge);
        END IF;
        passed := count_tasks_from('', NULL, NULL, COALESCE(page_since, count_edge('', from_time)));
        IF upper_edge IS NOT NULL THEN
            passed := passed - count_tasks_from('', NULL, NULL, upper_edge);
        END IF;
        is_sparse := COALESCE(100 * (matching - from_upper) < passed, FALSE);
    END IF;
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

-- The JSON object of a task as lists show it; sql/history/list_tasks.sql builds the same.
CREATE FUNCTION listed_task(task tasks) RETURNS text
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    SELECT row_to_json(shown)::text
    FROM (
        SELECT
            task.task_id, task.status, task.request_text, task.services_touched, task.outcome,
            rfc3339(task.created_at) AS created_at,
            rfc3339(task.completed_at) AS completed_at,
            task.error_message
    ) AS shown
$$;

-- Which events a reader has not seen yet; `sql/history/read_changes.sql` describes it. An imported
-- task was there before, as it is.
--
-- The function keeps the plans of its statements for the session, so that it takes a tenth of a
-- millisecond. Its result is of the one snapshot of the statement that calls it, as it is STABLE.
CREATE FUNCTION read_task_changes(
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
