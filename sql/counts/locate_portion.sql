-- locate_portion: where the next portion of a tally begins; one row.
--
-- :until: tasks from then on are tallied already; NULL: none are. :most: about how many tasks, of
-- any kind, a portion has.
-- since: the start of a day before :until, or of its month if the month has no more than :most
-- tasks, since a GIN index is read for a whole partition. It is at most 366 days before :until,
-- because each partition between is locked. NULL: fewer tasks than :most are left.
SELECT
    greatest(
        CASE
            WHEN place.since IS NULL THEN NULL
            WHEN month.n <= :most AND (:until IS NULL OR month.bucket < :until) THEN month.bucket
            ELSE bucket_of('day', least(place.since, :until - INTERVAL '1 microsecond'))
        END,
        CASE WHEN year_ago.day > year_ago.oldest THEN year_ago.day END
    ) AS since
FROM
    locate_task(
        '', NULL, NULL,
        :most::bigint
        + CASE
            WHEN :until::timestamptz IS NULL THEN 0
            ELSE count_tasks_from('', NULL, NULL, count_edge('', :until))
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
        bucket_of('day', COALESCE(:until, now()) - INTERVAL '366 days') AS day,
        (
            SELECT min(bucket)
            FROM task_counts
            WHERE service = '' AND grain = 'month'
        ) AS oldest
) AS year_ago
