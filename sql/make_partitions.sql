-- make_partitions: make the partitions that hold these times, where there are none; one row.
--
--  $1 times timestamptz[]  in any order
--  $2 width text           'month', 'week' or 'day'
SELECT count(make_task_partition(held, $2::text)) AS times
FROM (
    SELECT DISTINCT date_trunc('day', held_at, 'UTC') AS held
    FROM unnest($1::timestamptz[]) AS held_at
) AS days
