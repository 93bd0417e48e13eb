-- How the counts are read: totals, and where in time the tasks of a page are.
--
-- depends: 0004_counts

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
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    edges timestamptz[];
    at_grain task_grain;
    last_edge timestamptz := COALESCE(edge, '-infinity');
BEGIN
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
    RETURN (
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
        FROM task_count_deltas
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

-- Where a page lies: bounds for the planner, between which all its tasks are.
--
-- counted, statuses, intents, since, until: the filter, NULL as in count_tasks_from and unbounded.
-- after_at: created_at of a cursor; NULL: none. skipped: tasks before the page. wanted: its tasks.
--
-- since_edge, until_edge: the tasks between them are counted by the counts, those outside from the
-- rows; NULL if since or until is. is_counted: whether since_edge is not after until_edge.
-- page_since, page_until: half-open; NULL: no bound. is_sparse: whether fewer than one in a hundred
-- of the tasks between them match. Then the GIN index finds them faster than a walk in their order.
CREATE FUNCTION locate_page(
    counted text, statuses task_status[], intents text[], since timestamptz, until timestamptz,
    after_at timestamptz, skipped numeric, wanted int,
    OUT since_edge timestamptz, OUT until_edge timestamptz, OUT is_counted boolean,
    OUT page_since timestamptz, OUT page_until timestamptz, OUT is_sparse boolean
)
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    before_page bigint := 0;
    place_edge timestamptz;
    matching numeric;
    passed numeric;
BEGIN
    since_edge := count_edge(counted, since);
    SELECT bucket.since INTO until_edge FROM count_bucket(counted, until) AS bucket;
    is_counted := COALESCE(since_edge <= until_edge, TRUE);
    IF after_at IS NULL THEN
        place_edge := until_edge;
        SELECT place.until INTO page_until
        FROM locate_task(
            counted, statuses, intents,
            skipped + 1
            + CASE
                WHEN until IS NULL THEN 0
                ELSE count_tasks_from(counted, statuses, intents, count_edge(counted, until))
            END
        ) AS place;
        -- Not so many tasks: an empty page lies nowhere.
        page_until := COALESCE(page_until, '-infinity');
    ELSE
        SELECT bucket.since INTO place_edge FROM count_bucket(counted, after_at) AS bucket;
    END IF;
    IF place_edge IS NOT NULL THEN
        before_page := count_tasks_from(counted, statuses, intents, place_edge);
    END IF;
    SELECT place.since INTO page_since
    FROM locate_task(counted, statuses, intents, before_page + skipped + wanted + 1) AS place;
    IF page_until >= until THEN
        page_until := NULL;
    END IF;
    IF page_since <= since THEN
        page_since := NULL;
    END IF;

    matching := count_tasks_from(counted, statuses, intents, COALESCE(page_since, since_edge));
    passed := count_tasks_from('', NULL, NULL, COALESCE(page_since, count_edge('', since)));
    place_edge := COALESCE(page_until, place_edge);
    IF place_edge IS NOT NULL THEN
        matching := matching - count_tasks_from(counted, statuses, intents, place_edge);
        passed := passed - count_tasks_from('', NULL, NULL, place_edge);
    END IF;
    is_sparse := COALESCE(matching * 100 < passed, FALSE);
END
$$;
