-- count_spans: as count_rows, for many short spans of time.
--
-- A span lies between the members of :read_since and :read_until at the same place. The limits of
-- all spans are values in the plan, so that the planner opens only the partitions that are needed.
-- OFFSET 0 makes PostgreSQL read all tasks of a span by the index on created_at, before it looks at
-- the filter. Otherwise it might compare each task that matches with each span.
-- segment: int. status, intent: text. n: bigint.
SELECT
    width_bucket(created_at, :edges::timestamptz[]) AS segment,
    status::text AS status,
    CASE WHEN :by_intent::boolean THEN intent END AS intent,
    count(*) AS n
FROM unnest(:read_since::timestamptz[], :read_until::timestamptz[]) AS span (since, until)
CROSS JOIN
    LATERAL (
        SELECT *
        FROM tasks
        WHERE
            created_at >= span.since
            AND created_at < span.until
            AND created_at >= (:read_since)[1]
            AND created_at < (:read_until)[cardinality(:read_until)]
        OFFSET 0
    ) AS task
WHERE :filter
GROUP BY 1, 2, 3
