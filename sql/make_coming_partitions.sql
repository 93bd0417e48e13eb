-- make_coming_partitions: make the partitions of the present and the coming months; one row.
--
--  $1 width text  'month', 'week' or 'day'
SELECT count(make_task_partition(ahead, $1::text)) AS times
FROM generate_series(now(), now() + interval '3 months', ('1 ' || $1)::interval) AS ahead
