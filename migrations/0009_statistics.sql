-- What statistics read of the counts: the numbers of tasks in the bars of a histogram.
--
-- A bar is a half-open span of time. Bars are given by their edges, in ascending order: bar n lies
-- between edges n and n + 1. The first edge may be -infinity, and the last one infinity.
--
-- depends: 0008_roles

DO $$ BEGIN
    PERFORM set_config('search_path', quote_ident(current_schema()) || ', pg_temp', TRUE);
END $$;

-- Part of a bar, which Python computes: the buckets of a grain from since on and before until. They
-- are in one bucket of the next coarser grain, which begins at within. The counts know them if that
-- bucket is split. Without a grain, the counts know nothing of it. The sign is -1 if the part is to
-- be subtracted, since another part of the bar contains it and the bar does not.
CREATE TYPE bar_part AS (
    bar integer,
    sign integer,
    grain task_grain,
    within timestamptz,
    since timestamptz,
    until timestamptz
);

-- The parts of bars, each with its number in the array and whether the counts of a service know it.
CREATE FUNCTION known_parts(counted text, parts bar_part[])
RETURNS TABLE (
    number bigint,
    is_known boolean,
    bar integer,
    sign integer,
    grain task_grain,
    since timestamptz,
    until timestamptz
)
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT
        part.number,
        COALESCE(
            part.grain <= 'month'
            OR EXISTS (
                SELECT
                FROM task_count_splits AS split
                WHERE
                    split.service = counted
                    AND split.grain = CASE part.grain
                        WHEN 'day' THEN 'month'::task_grain
                        WHEN 'hour' THEN 'day'::task_grain
                        WHEN 'minute' THEN 'hour'::task_grain
                        WHEN 'second' THEN 'minute'::task_grain
                    END
                    AND split.bucket = part.within
            ),
            FALSE
        ) AS is_known,
        part.bar,
        part.sign,
        part.grain,
        part.since,
        part.until
    FROM unnest(parts) WITH ORDINALITY AS part (bar, sign, grain, within, since, until, number);
END;

-- How many tasks were created in each bar, by state and, if by_intent, by intent.
--
-- counted: a service; '' means all tasks. any_status, any_intent: any of them; NULL: any. parts: of
-- all bars.
-- bars, statuses, intents, numbers: arrays of the same length, for each number that is not 0.
-- unknown: the numbers of the parts that the counts do not know; NULL: none. The caller counts the
-- tasks of these parts in the same snapshot, and adds or subtracts them.
CREATE FUNCTION count_bars(
    counted text,
    any_status task_status[],
    any_intent text[],
    edges timestamptz[],
    parts bar_part[],
    by_intent boolean,
    OUT bars integer[],
    OUT statuses task_status[],
    OUT intents text[],
    OUT numbers bigint[],
    OUT unknown integer[]
)
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

    WITH part AS MATERIALIZED (
        SELECT * FROM known_parts(counted, parts)
    ),

    -- Where unknown parts begin and end.
    cut AS MATERIALIZED (
        SELECT array_agg(DISTINCT edge ORDER BY edge) AS edges
        FROM part
        CROSS JOIN LATERAL (VALUES (part.since), (part.until)) AS ends (edge)
        WHERE NOT part.is_known
    ),

    delta AS MATERIALIZED (
        SELECT
            width_bucket(created_at, count_bars.edges) AS bar,
            width_bucket(created_at, cut.edges) AS segment,
            status,
            CASE WHEN by_intent THEN intent END AS intent,
            n
        FROM uncounted_task_changes(state)
        CROSS JOIN cut
        WHERE created_at >= count_bars.edges[1]
            AND created_at < count_bars.edges[cardinality(count_bars.edges)]
            AND (counted = '' OR services_touched @> ARRAY[counted])
            AND (any_status IS NULL OR status = ANY(any_status))
            AND (any_intent IS NULL OR intent = ANY(any_intent))
    ),

    known AS (
        SELECT part.bar, cell.status, cell.intent, part.sign * cell.n AS n
        FROM part
        CROSS JOIN LATERAL (
            SELECT status, CASE WHEN by_intent THEN intent END AS intent, sum(n) AS n
            FROM task_counts
            WHERE service = counted
                AND grain = part.grain
                AND bucket >= part.since
                AND bucket < part.until
                AND (any_status IS NULL OR status = ANY(any_status))
                AND (any_intent IS NULL OR intent = ANY(any_intent))
            GROUP BY 1, 2
        ) AS cell
        WHERE part.is_known
        UNION ALL
        SELECT bar, status, intent, n FROM delta
        UNION ALL
        -- The tasks of an unknown part are those after its deltas. They must not count twice.
        SELECT part.bar, delta.status, delta.intent, -part.sign * delta.n
        FROM part
        CROSS JOIN cut
        CROSS JOIN LATERAL generate_series(
            width_bucket(part.since, cut.edges), width_bucket(part.until, cut.edges) - 1
        ) AS covered (segment)
        INNER JOIN delta ON delta.segment = covered.segment
        WHERE NOT part.is_known
    ),

    summed AS (
        SELECT bar, status, intent, sum(n) AS n
        FROM known
        GROUP BY bar, status, intent
        HAVING sum(n) <> 0
    )

    SELECT
        array_agg(bar),
        array_agg(status),
        array_agg(intent),
        array_agg(n),
        (SELECT array_agg(number ORDER BY number) FROM part WHERE NOT is_known)
    INTO bars, statuses, intents, numbers, unknown
    FROM summed;
END
$$;

-- The finest bucket that holds the oldest or the newest task, by the counts and the deltas. Both
-- are NULL if there is no task.
CREATE FUNCTION outermost_bucket(
    counted text,
    any_status task_status[],
    any_intent text[],
    is_newest boolean,
    OUT since timestamptz,
    OUT until timestamptz
)
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
DECLARE
    state task_log_state;
    at_grain task_grain := 'year';
    found_bucket timestamptz;
    low timestamptz := '-infinity';
    high timestamptz := 'infinity';
BEGIN
    SELECT * INTO STRICT state FROM task_log_state;
    LOOP
        SELECT CASE WHEN is_newest THEN max(bucket) ELSE min(bucket) END INTO found_bucket
        FROM (
            SELECT bucket
            FROM (
                SELECT bucket, n
                FROM task_counts
                WHERE service = counted
                    AND grain = at_grain
                    AND bucket >= low
                    AND bucket < high
                    AND (any_status IS NULL OR status = ANY(any_status))
                    AND (any_intent IS NULL OR intent = ANY(any_intent))
                UNION ALL
                SELECT bucket_of(at_grain, created_at), n
                FROM uncounted_task_changes(state)
                WHERE created_at >= low
                    AND created_at < high
                    AND (counted = '' OR services_touched @> ARRAY[counted])
                    AND (any_status IS NULL OR status = ANY(any_status))
                    AND (any_intent IS NULL OR intent = ANY(any_intent))
            ) AS known
            GROUP BY bucket
            HAVING sum(n) > 0
        ) AS held;
        EXIT WHEN found_bucket IS NULL;
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

-- At least as many tasks of each service as were created in a window, and not many more: those of
-- the years and months in the window, and of the days or months that its ends cut through.
--
-- since, until: the ends of the window. whole: the parts of it that are whole months and years.
-- any_status, any_intent: any of them; NULL: any.
CREATE FUNCTION bound_services(
    any_status task_status[],
    any_intent text[],
    since timestamptz,
    until timestamptz,
    whole bar_part[]
)
RETURNS TABLE (service text, bound bigint)
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
DECLARE
    state task_log_state;
    first_month timestamptz := bucket_of('month', since);
    last_month timestamptz := bucket_of('month', until);
BEGIN
    SELECT * INTO STRICT state FROM task_log_state;
    RETURN QUERY
    WITH RECURSIVE counted AS (
        (SELECT service FROM task_counts WHERE service > '' ORDER BY service LIMIT 1)
        UNION ALL
        SELECT (
            SELECT following.service
            FROM task_counts AS following
            WHERE following.service > counted.service
            ORDER BY following.service
            LIMIT 1
        )
        FROM counted
        WHERE counted.service IS NOT NULL
    ),

    fresh AS (
        SELECT touched.service, sum(delta.n) AS n
        FROM uncounted_task_changes(state) AS delta
        CROSS JOIN LATERAL unnest(delta.services_touched) AS touched (service)
        WHERE
            delta.n > 0
            AND delta.created_at >= since
            AND delta.created_at < until
            AND (any_status IS NULL OR delta.status = ANY(any_status))
            AND (any_intent IS NULL OR delta.intent = ANY(any_intent))
        GROUP BY touched.service
    ),

    -- The month that the start cuts through, and the one that the end cuts through.
    cut AS MATERIALIZED (
        SELECT DISTINCT
            month,
            greatest(month, bucket_of('day', since)) AS since,
            least(bucket_after('month', month), until) AS until
        FROM (VALUES (first_month), (last_month)) AS ends (month)
        WHERE (month < since OR month = last_month) AND month < until
    ),

    every_service AS (
        SELECT service FROM counted WHERE service IS NOT NULL
        UNION
        SELECT service FROM fresh
    )

    SELECT
        every_service.service,
        (
            COALESCE(
                (
                    SELECT sum(cell.n)
                    FROM unnest(whole) AS part
                    INNER JOIN task_counts AS cell
                        ON
                            cell.service = every_service.service
                            AND cell.grain = part.grain
                            AND cell.bucket >= part.since
                            AND cell.bucket < part.until
                    WHERE
                        (any_status IS NULL OR cell.status = ANY(any_status))
                        AND (any_intent IS NULL OR cell.intent = ANY(any_intent))
                ), 0
            )
            + COALESCE(
                (
                    SELECT sum(cell.n)
                    FROM cut
                    CROSS JOIN LATERAL (
                        SELECT EXISTS (
                            SELECT
                            FROM task_count_splits AS split
                            WHERE
                                split.service = every_service.service
                                AND split.grain = 'month'
                                AND split.bucket = cut.month
                        ) AS is_split
                    ) AS month
                    INNER JOIN task_counts AS cell
                        ON
                            cell.service = every_service.service
                            AND cell.grain
                            = CASE WHEN month.is_split THEN 'day' ELSE 'month' END::task_grain
                            AND cell.bucket
                            >= CASE WHEN month.is_split THEN cut.since ELSE cut.month END
                            AND cell.bucket < cut.until
                    WHERE
                        (any_status IS NULL OR cell.status = ANY(any_status))
                        AND (any_intent IS NULL OR cell.intent = ANY(any_intent))
                ), 0
            )
            + COALESCE(fresh.n, 0)
        )::bigint
    FROM every_service
    LEFT JOIN fresh USING (service);
END
$$;
