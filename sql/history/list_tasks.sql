-- list_tasks: one page of tasks, newest first, and how many tasks match; one row.
--
-- tasks: text, a JSON array of the page. shown: how many tasks it has, at most :limit, and no more
-- than fit into :max_bytes if each is rounded up to 1 KiB; 0 if the first one alone does not fit.
-- fetched: more than shown if tasks follow the page. last_at, last_id: of the last task shown.
-- total: how many tasks match the filter. skipped: how many of them are at or after the end of
-- :place, if it has one. Both are NULL if :edges are not edges of the counts, or are NULL.
-- snapshot: text, what the statement saw.
-- docs/counts.md describes :place, :is_sparse, :edges and :offset. They are values in the plan, so
-- that the planner opens only the partitions that are needed.

-- One task more than the page, to know whether tasks follow. If matches are sparse, an order that
-- no index has keeps the planner from walking the newest tasks in the hope of finding some soon.
-- The second condition of the cursor follows from the first; partitions are chosen by it.
WITH fetched AS (
    SELECT
        task_id, status, request_text, services_touched, outcome, created_at, completed_at,
        error_message
    FROM tasks
    WHERE
        :filter
        AND ((:place::timestamptz[])[1] IS NULL OR created_at >= (:place)[1])
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

-- The counts know how many tasks are at or after an edge. Those between an edge and the limit of
-- the filter next to it are counted one by one.
counts AS MATERIALIZED (
    SELECT
        CASE
            WHEN :edges::timestamptz[] IS NOT NULL
                THEN
                    count_tasks_from_each(
                        COALESCE((:services)[1], ''), :statuses, :intents,
                        ARRAY[
                            COALESCE((:edges)[1], '-infinity'),
                            COALESCE((:edges)[2], 'infinity'),
                            (:place)[2]
                        ]
                    )
        END AS from_each,
        CASE
            WHEN (:edges)[1] IS NULL THEN 0
            ELSE (SELECT count(*) FROM tasks WHERE :filter AND created_at < (:edges)[1])
        END AS before_edge,
        CASE
            WHEN (:edges)[2] IS NULL THEN 0
            ELSE (SELECT count(*) FROM tasks WHERE :filter AND created_at >= (:edges)[2])
        END AS after_edge
)

SELECT
    '[' || COALESCE(array_to_string(documents[1:shown], ','), '') || ']' AS tasks,
    shown,
    fetched,
    times[shown] AS last_at,
    ids[shown] AS last_id,
    from_each[1] - from_each[2] + before_edge + after_edge AS total,
    CASE
        WHEN (:place)[2] IS NULL THEN 0
        ELSE from_each[3] - from_each[2] + after_edge
    END AS skipped,
    :snapshot AS snapshot
FROM (
    SELECT
        array_agg(document) FILTER (WHERE part = 0) AS documents,
        array_agg(created_at) FILTER (WHERE part = 0) AS times,
        array_agg(task_id) FILTER (WHERE part = 0) AS ids,
        count(*) FILTER (WHERE part = 0) AS fetched,
        least(
            count(*) FILTER (WHERE part = 0) - (count(*) > :max_bytes / 1024)::int, :limit
        ) AS shown
    FROM (
        -- One row for each KiB that a document has begun, the first with part 0. LIMIT ends the
        -- reading, and with it the building of documents, at the first row that does not fit.
        SELECT
            task_id, created_at, document,
            generate_series(0, least(octet_length(document), :max_bytes::bigint) / 1024) AS part
        FROM (
            -- OFFSET 0 keeps the planner from building each document twice.
            SELECT fetched.task_id, fetched.created_at, row_to_json(shown)::text AS document
            FROM fetched
            CROSS JOIN
                LATERAL (
                    SELECT
                        fetched.task_id,
                        fetched.status,
                        fetched.request_text,
                        fetched.services_touched,
                        fetched.outcome,
                        rfc3339(fetched.created_at) AS created_at,
                        rfc3339(fetched.completed_at) AS completed_at,
                        fetched.error_message
                ) AS shown
            OFFSET 0
        ) AS documents
        LIMIT :max_bytes / 1024 + 1
    ) AS parts
) AS page
CROSS JOIN counts
