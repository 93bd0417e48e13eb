-- list_tasks: one page of tasks, newest first, and how many tasks match; one row.
--
-- tasks: text, a JSON array of the page. shown: how many tasks it has, at most :limit, and no more
-- than fit into :max_bytes if each is rounded up to 1 KiB; 0 if the first one alone does not fit.
-- fetched: more than shown if tasks follow the page. last_at, last_id: of the last task shown.
-- total: how many tasks match the filter. skipped: how many of them are at or after the end of
-- :place. Both are NULL if :edges are not edges of the counts, or are NULL.
-- snapshot: text, what the statement saw; NULL if it counted.
-- docs/counts.md describes :place, :is_sparse, :edges and :offset. They are values in the plan, so
-- that the planner opens only the partitions that are needed.
WITH later AS MATERIALIZED (
    -- Tasks at or after :until that the counts contain from the edge on.
    SELECT
        CASE
            WHEN (:edges::timestamptz[])[2] IS NULL THEN 0
            ELSE
                count_tasks_from(
                    COALESCE((:services::text[])[1], ''), :statuses::task_status[],
                    :intents::text[], (:edges)[2]
                )
                - (SELECT count(*) FROM tasks WHERE :filter AND created_at >= (:edges)[2])
        END AS n
),

counts AS MATERIALIZED (
    SELECT
        CASE
            WHEN :edges IS NOT NULL
                THEN
                    count_tasks_from(
                        COALESCE((:services)[1], ''), :statuses, :intents, (:edges)[1]
                    )
                    + CASE
                        WHEN (:edges)[1] IS NULL THEN 0
                        ELSE (SELECT count(*) FROM tasks WHERE :filter AND created_at < (:edges)[1])
                    END
                    - (SELECT later.n FROM later)
        END AS total,
        CASE
            WHEN :edges IS NULL THEN NULL
            WHEN (:place::timestamptz[])[2] IS NULL THEN 0
            ELSE
                count_tasks_from(COALESCE((:services)[1], ''), :statuses, :intents, (:place)[2])
                - (SELECT later.n FROM later)
        END AS skipped
),

-- One task more than the page, to know whether tasks follow. If matches are sparse, an order that
-- no index has keeps the planner from walking the newest tasks in the hope of finding some soon.
-- The second condition of the cursor follows from the first; partitions are chosen by it.
fetched AS (
    SELECT
        task_id, status, request_text, services_touched, outcome, created_at, completed_at,
        error_message
    FROM tasks
    WHERE
        :filter
        AND ((:place)[1] IS NULL OR created_at >= (:place)[1])
        AND ((:place)[2] IS NULL OR created_at < (:place)[2])
        AND (
            :after_at::timestamptz IS NULL
            OR ((created_at, task_id) < (:after_at, :after_id::uuid) AND created_at <= :after_at)
        )
    ORDER BY
        CASE WHEN :is_sparse::boolean THEN created_at + INTERVAL '0' ELSE created_at END DESC,
        task_id DESC
    LIMIT :limit::int + (:limit > 0)::int OFFSET :offset
),

-- OFFSET 0 keeps the planner from building each document twice.
documents AS (
    SELECT fetched.task_id, fetched.created_at, row_to_json(shown)::text AS document
    FROM fetched
    CROSS JOIN
        LATERAL (
            SELECT
                fetched.task_id, fetched.status, fetched.request_text, fetched.services_touched,
                fetched.outcome,
                rfc3339(fetched.created_at) AS created_at,
                rfc3339(fetched.completed_at) AS completed_at,
                fetched.error_message
        ) AS shown
    OFFSET 0
),

-- One row for each KiB that a document has begun, the first with part 0. LIMIT ends the reading,
-- and with it the building of documents, at the first row that does not fit into the page.
parts AS (
    SELECT
        task_id, created_at, document,
        generate_series(0, least(octet_length(document), :max_bytes::bigint) / 1024) AS part
    FROM documents
    LIMIT :max_bytes / 1024 + 1
),

page AS (
    SELECT
        array_agg(document) FILTER (WHERE part = 0) AS documents,
        array_agg(created_at) FILTER (WHERE part = 0) AS times,
        array_agg(task_id) FILTER (WHERE part = 0) AS ids,
        count(*) FILTER (WHERE part = 0) AS fetched,
        least(
            count(*) FILTER (WHERE part = 0) - (count(*) > :max_bytes / 1024)::int, :limit
        ) AS shown
    FROM parts
)

SELECT
    '[' || COALESCE(array_to_string(documents[1:shown], ','), '') || ']' AS tasks,
    shown,
    fetched,
    times[shown] AS last_at,
    ids[shown] AS last_id,
    (SELECT total FROM counts) AS total,
    (SELECT skipped FROM counts) AS skipped,
    CASE WHEN :edges IS NULL THEN :snapshot END AS snapshot
FROM page
