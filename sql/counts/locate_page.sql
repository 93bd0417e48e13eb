-- locate_page: where in time the tasks of a page are, by the counts; one row.
--
-- :service is '' for all tasks. :after_at is created_at of a cursor. NULL means any, or none.
-- since_edge, until_edge: the counts know the tasks between them. Those from since to since_edge
-- and from until_edge to until are counted from the rows. is_counted: since_edge <= until_edge.
-- page_since, page_until: the page is between them; NULL: no bound. page_since is infinity if fewer
-- than :offset tasks match. skipped: how many match at or after page_until, less those between
-- until_edge and until. is_sparse: fewer than one in a hundred tasks in the place match.
WITH edges AS MATERIALIZED (
    SELECT
        count_edge(:service::text, :since::timestamptz) AS since_edge,
        until_bucket.since AS until_edge,
        CASE
            WHEN :after_at::timestamptz IS NULL THEN until_bucket.since
            ELSE after_bucket.since
        END AS newest_edge
    FROM count_bucket(:service, :until::timestamptz) AS until_bucket
    CROSS JOIN count_bucket(:service, :after_at) AS after_bucket
),

-- locate_task does not know the deltas: they may move a task by so many ranks.
unfolded AS MATERIALIZED (
    SELECT
        count(*) FILTER (WHERE n > 0) AS added,
        count(*) FILTER (WHERE n < 0) AS removed
    FROM task_count_deltas
    WHERE
        (:service = '' OR services_touched @> ARRAY[:service])
        AND (:statuses::task_status[] IS NULL OR status = ANY(:statuses))
        AND (:intents::text[] IS NULL OR intent = ANY(:intents))
),

ranks AS MATERIALIZED (
    SELECT
        :offset::bigint + 1 - added
        + CASE
            WHEN :until IS NULL THEN 0
            ELSE count_tasks_from(:service, :statuses, :intents, count_edge(:service, :until))
        END AS first_rank,
        :offset + :limit::int + 1 + removed
        + CASE
            WHEN newest_edge IS NULL THEN 0
            ELSE count_tasks_from(:service, :statuses, :intents, newest_edge)
        END AS last_rank
    FROM unfolded
    CROSS JOIN edges
),

place AS MATERIALIZED (
    SELECT
        CASE
            WHEN :after_at IS NULL AND first_rank >= 1 AND newest.until IS NULL THEN 'infinity'
            WHEN :since IS NULL OR oldest.since > :since THEN oldest.since
        END AS page_since,
        CASE
            WHEN
                :after_at IS NULL AND first_rank >= 1
                AND (:until IS NULL OR newest.until < :until)
                THEN newest.until
        END AS page_until
    FROM ranks
    CROSS JOIN locate_task(:service, :statuses, :intents, first_rank) AS newest
    CROSS JOIN locate_task(:service, :statuses, :intents, last_rank) AS oldest
),

newer AS MATERIALIZED (
    SELECT
        CASE
            WHEN COALESCE(page_until, newest_edge) IS NULL THEN 0
            ELSE
                count_tasks_from(
                    :service, :statuses, :intents, COALESCE(page_until, newest_edge)
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
        ELSE newer.matching - count_tasks_from(:service, :statuses, :intents, until_edge)
    END AS skipped,
    COALESCE(
        100 * (
            count_tasks_from(:service, :statuses, :intents, COALESCE(page_since, since_edge))
            - newer.matching
        ) < (
            count_tasks_from('', NULL, NULL, COALESCE(page_since, count_edge('', :since)))
            - newer.passed
        ),
        FALSE
    ) AS is_sparse
FROM edges
CROSS JOIN place
CROSS JOIN newer
