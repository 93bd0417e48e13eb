-- check_counts: recount all tasks; the counts that differ, by service, grain and bucket.
--
-- service: '' is all tasks. expected: as recounted. counted: with the deltas.
WITH touching AS (
    SELECT service, created_at, status, intent, n
    FROM (
        SELECT created_at, status, services_touched, intent, 1 AS n
        FROM tasks
        UNION ALL
        -- task_counts contains the deltas only once they are folded.
        SELECT created_at, status, services_touched, intent, -n
        FROM task_count_deltas
    ) AS changes
    CROSS JOIN LATERAL (
        SELECT DISTINCT unnest(array_append(services_touched, '')) AS service
    ) AS each_service
),

tallied AS (
    SELECT
        service,
        grain,
        bucket_of(grain, created_at) AS bucket,
        status,
        intent,
        n AS expected,
        0 AS counted
    FROM touching
    CROSS JOIN unnest(enum_range(NULL::task_grain)) WITH ORDINALITY AS grains (grain, place)
    LEFT JOIN unnest(enum_range(NULL::task_grain)) WITH ORDINALITY AS coarser (coarse, place)
        ON grains.place = coarser.place + 1
    WHERE
        grain <= 'month'
        OR (service, coarse, bucket_of(coarse, created_at)) IN (
            SELECT split.service, split.grain, split.bucket
            FROM task_count_splits AS split
        )
    UNION ALL
    SELECT service, grain, bucket, status, intent, 0, n
    FROM task_counts
)

SELECT
    service,
    grain::text AS grain,
    bucket,
    status::text AS status,
    intent,
    sum(expected)::bigint AS expected,
    sum(counted)::bigint AS counted
FROM tallied
GROUP BY service, tallied.grain, bucket, tallied.status, intent
HAVING sum(expected) <> sum(counted)
ORDER BY service, tallied.grain, bucket, tallied.status, intent
