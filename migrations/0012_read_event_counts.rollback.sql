DO $$ BEGIN
    PERFORM set_config('search_path', quote_ident(current_schema()) || ', pg_temp', TRUE);
END $$;

DROP FUNCTION days_changed_since;

-- How many tasks were created at or after a boundary that count_edge returned; NULL: ever.
--
-- counted: a service; '' means all tasks. statuses, intents: any of them; NULL: any. Returns NULL
-- if the boundary is none of this service's.
CREATE OR REPLACE FUNCTION count_tasks_from(
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


-- Where in time the tasks of a page are; one row. sql/counts/locate_page.sql describes it.
--
-- A function keeps the plan of its query for the life of a session. A statement of the service is
-- planned each time, which would take longer than to run this one.
CREATE OR REPLACE FUNCTION locate_page(
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
SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
BEGIN
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

    -- locate_task does not know the deltas: they may move a task by so many ranks.
    unfolded AS MATERIALIZED (
        SELECT
            count(*) FILTER (WHERE n > 0) AS added,
            count(*) FILTER (WHERE n < 0) AS removed
        FROM task_count_deltas
        WHERE
            (of_service = '' OR services_touched @> ARRAY[of_service])
            AND (any_status IS NULL OR status = ANY(any_status))
            AND (any_intent IS NULL OR intent = ANY(any_intent))
    ),

    ranks AS MATERIALIZED (
        SELECT
            tasks_before + 1 - added
            + CASE
                WHEN to_time IS NULL THEN 0
                ELSE count_tasks_from(of_service, any_status, any_intent, count_edge(of_service, to_time))
            END AS first_rank,
            tasks_before + tasks_wanted + 1 + removed
            + CASE
                WHEN newest_edge IS NULL THEN 0
                ELSE count_tasks_from(of_service, any_status, any_intent, newest_edge)
            END AS last_rank
        FROM unfolded
        CROSS JOIN edges
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
