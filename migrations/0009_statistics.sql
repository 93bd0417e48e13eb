-- What statistics read of the counts: the numbers of tasks in the bars of a histogram.
--
-- A bar is a half-open span of time. Bars are given by their edges, in ascending order: bar n lies
-- between edges n and n + 1. The first edge may be -infinity, and the last one infinity.
--
-- depends: 0008_roles

DO $$ BEGIN
    PERFORM set_config('search_path', quote_ident(current_schema()) || ', pg_temp', TRUE);
END $$;

-- Divide bars into parts. The tasks of a part with a grain are those of the buckets between since
-- and until of this grain. The counts do not know the tasks of a part without a grain.
CREATE FUNCTION bar_parts(counted text, edges timestamptz[])
RETURNS TABLE (bar integer, grain task_grain, since timestamptz, until timestamptz)
LANGUAGE sql STABLE
BEGIN ATOMIC
    WITH bars AS (
        SELECT bar, edges[bar] AS since, edges[bar + 1] AS until
        FROM generate_series(1, cardinality(edges) - 1) AS bar
    ),

    -- The buckets of a grain that lie in a bar are those from first to last, and those of the next
    -- coarser grain are the ones from coarse_first to coarse_last. Without a grain: the bar itself.
    grained AS (
        SELECT
            bars.bar,
            grains.grain,
            grains.coarser,
            CASE
                WHEN grains.grain IS NULL OR inner_bucket.first = bars.since THEN bars.since
                ELSE bucket_after(grains.grain, inner_bucket.first)
            END AS first,
            COALESCE(inner_bucket.last, bars.until) AS last,
            CASE
                WHEN grains.coarser IS NULL THEN 'infinity'
                WHEN coarse_bucket.first = bars.since THEN bars.since
                ELSE bucket_after(grains.coarser, coarse_bucket.first)
            END AS coarse_first,
            COALESCE(coarse_bucket.last, '-infinity') AS coarse_last
        FROM bars
        CROSS JOIN (
            VALUES
            (NULL::task_grain, 'second'::task_grain),
            ('second', 'minute'),
            ('minute', 'hour'),
            ('hour', 'day'),
            ('day', 'month'),
            ('month', 'year'),
            ('year', NULL)
        ) AS grains (grain, coarser)
        CROSS JOIN
            LATERAL (
                SELECT
                    bucket_of(grains.grain, bars.since) AS first,
                    bucket_of(grains.grain, bars.until) AS last
            ) AS inner_bucket
        CROSS JOIN LATERAL (
            SELECT
                bucket_of(grains.coarser, bars.since) AS first,
                bucket_of(grains.coarser, bars.until) AS last
        ) AS coarse_bucket
    )

    -- What the coarser buckets leave over at the start and at the end of the bar. Each of the two
    -- lies in one coarser bucket. The counts have its parts if that is split.
    SELECT
        grained.bar,
        CASE
            WHEN grained.grain <= 'month' THEN grained.grain
            WHEN EXISTS (
                SELECT
                FROM task_count_splits AS split
                WHERE
                    split.service = counted
                    AND split.grain = grained.coarser
                    AND split.bucket = bucket_of(grained.coarser, part.since)
            ) THEN grained.grain
        END AS grain,
        part.since,
        part.until
    FROM grained
    CROSS JOIN
        LATERAL (
            VALUES
            (grained.first, least(grained.coarse_first, grained.last)),
            (
                grained.coarse_last,
                CASE WHEN grained.coarse_first <= grained.coarse_last THEN grained.last END
            )
        ) AS part (since, until)
    WHERE part.since < part.until;
END;

-- How many tasks were created in each bar, by state and, if by_intent, by intent.
--
-- counted: a service; '' means all tasks. any_status, any_intent: any of them; NULL: any.
-- bars, statuses, intents, numbers: arrays of the same length, for each number that is not 0.
-- read_since, read_until: spans of which the numbers lack the tasks. The caller counts them from
-- the rows, in the same snapshot. There are at most most_reads, and then one for all of them.
CREATE FUNCTION count_bars(
    counted text,
    any_status task_status[],
    any_intent text[],
    edges timestamptz[],
    by_intent boolean,
    most_reads integer,
    OUT bars integer[],
    OUT statuses task_status[],
    OUT intents text[],
    OUT numbers bigint[],
    OUT read_since timestamptz[],
    OUT read_until timestamptz[]
)
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
DECLARE
    state task_log_state;
    reads tstzmultirange;
BEGIN
    SELECT * INTO STRICT state FROM task_log_state;
    SELECT COALESCE(range_agg(tstzrange(since, until)), '{}') INTO reads
    FROM bar_parts(counted, edges)
    WHERE grain IS NULL;
    IF (SELECT count(*) FROM unnest(reads)) > most_reads THEN
        reads := tstzmultirange(range_merge(reads));
    END IF;
    SELECT array_agg(lower(span) ORDER BY span), array_agg(upper(span) ORDER BY span)
    INTO read_since, read_until
    FROM unnest(reads) AS span;

    WITH known AS (
        SELECT part.bar, cell.status, cell.intent, cell.n
        FROM bar_parts(counted, edges) AS part
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
        WHERE part.grain IS NOT NULL AND NOT tstzrange(part.since, part.until) <@ reads
        UNION ALL
        SELECT
            width_bucket(created_at, edges),
            status,
            CASE WHEN by_intent THEN intent END,
            n
        FROM (
            SELECT created_at, status, services_touched, intent, n
            FROM logged_task_changes(state.counted, NULL, state.uncounted_since)
            WHERE state.counted < state.size
            UNION ALL
            SELECT created_at, status, services_touched, intent, n
            FROM queued_task_changes(state.queue_floor)
        ) AS delta
        WHERE created_at >= edges[1]
            AND created_at < edges[cardinality(edges)]
            AND NOT created_at <@ reads
            AND (counted = '' OR services_touched @> ARRAY[counted])
            AND (any_status IS NULL OR status = ANY(any_status))
            AND (any_intent IS NULL OR intent = ANY(any_intent))
    ),

    summed AS (
        SELECT bar, status, intent, sum(n) AS n
        FROM known
        GROUP BY bar, status, intent
        HAVING sum(n) <> 0
    )

    SELECT array_agg(bar), array_agg(status), array_agg(intent), array_agg(n)
    INTO bars, statuses, intents, numbers
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
                FROM (
                    SELECT created_at, status, services_touched, intent, n
                    FROM logged_task_changes(state.counted, NULL, state.uncounted_since)
                    WHERE state.counted < state.size
                    UNION ALL
                    SELECT created_at, status, services_touched, intent, n
                    FROM queued_task_changes(state.queue_floor)
                ) AS delta
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
-- since, until: the ends of the window. any_status, any_intent: any of them; NULL: any.
CREATE FUNCTION bound_services(
    any_status task_status[], any_intent text[], since timestamptz, until timestamptz
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
    -- The months that lie in the window.
    first_month timestamptz := bucket_of('month', since);
    last_month timestamptz := bucket_of('month', until);
    after_month timestamptz := CASE
        WHEN first_month = since THEN since ELSE bucket_after('month', first_month)
    END;
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
        FROM (
            SELECT created_at, status, services_touched, intent, n
            FROM logged_task_changes(state.counted, NULL, state.uncounted_since)
            WHERE state.counted < state.size
            UNION ALL
            SELECT created_at, status, services_touched, intent, n
            FROM queued_task_changes(state.queue_floor)
        ) AS delta
        CROSS JOIN LATERAL unnest(delta.services_touched) AS touched (service)
        WHERE
            delta.n > 0
            AND delta.created_at >= since
            AND delta.created_at < until
            AND (any_status IS NULL OR delta.status = ANY(any_status))
            AND (any_intent IS NULL OR delta.intent = ANY(any_intent))
        GROUP BY touched.service
    ),

    whole AS MATERIALIZED (
        SELECT grain, since, until
        FROM bar_parts('', ARRAY[after_month, greatest(after_month, last_month)])
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
                    FROM whole
                    INNER JOIN task_counts AS cell
                        ON
                            cell.service = every_service.service
                            AND cell.grain = whole.grain
                            AND cell.bucket >= whole.since
                            AND cell.bucket < whole.until
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
