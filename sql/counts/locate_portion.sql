-- locate_portion: from where on to tally the next tasks; one row.
--
-- $1 until timestamptz  what was created from then on is tallied already; NULL: nothing
-- $2 most  bigint       about so many tasks, of any kind, are to be looked at
--
-- since: the start of a day before until, that of a month where its tasks are not too many: a GIN
-- index is read for all of a partition. It is at most 366 days before until, since every partition
-- in between is locked. NULL: not so many tasks are left.
SELECT
    greatest(
        CASE
            WHEN place.since IS NULL THEN NULL
            WHEN month.n <= $2 AND ($1 IS NULL OR month.bucket < $1) THEN month.bucket
            ELSE bucket_of('day', least(place.since, $1 - INTERVAL '1 microsecond'))
        END,
        CASE WHEN year_ago.day > year_ago.oldest THEN year_ago.day END
    ) AS since
FROM
    locate_task(
        '', NULL, NULL,
        $2::bigint
        + CASE
            WHEN $1::timestamptz IS NULL THEN 0
            ELSE count_tasks_from('', NULL, NULL, count_edge('', $1))
        END
    ) AS place
CROSS JOIN
    LATERAL (
        SELECT
            bucket_of('month', place.since) AS bucket,
            (
                SELECT sum(n)
                FROM task_counts
                WHERE service = '' AND grain = 'month' AND bucket = bucket_of('month', place.since)
            ) AS n
    ) AS month
CROSS JOIN LATERAL (
    SELECT
        bucket_of('day', COALESCE($1, now()) - INTERVAL '366 days') AS day,
        (
            SELECT min(bucket)
            FROM task_counts
            WHERE service = '' AND grain = 'month'
        ) AS oldest
) AS year_ago
