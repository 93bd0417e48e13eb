-- make_partitions: make the partitions that hold these times, where there are none; one row.
--
--  $1 times timestamptz[]  in any order; NULL: now; what is too far ahead is passed over
--  $2 width text           'month', 'week' or 'day'
SELECT count(make_task_partition(held, $2::text)) AS times
FROM (
    SELECT DISTINCT date_trunc('day', coalesce(held_at, now()), 'UTC') AS held
    FROM unnest($1::timestamptz[]) AS held_at
    WHERE held_at IS NULL OR held_at < now() + INTERVAL '2 days'
) AS days
