-- make_coming_partitions: make partitions of the present and the coming months; one row, or none
-- where the server accepts no writes.
--
--  $1 width           text  'month', 'week' or 'day'
--  $2 most            int   make no more than that: run it again until it makes none
--  $3 most_partitions int   raise TA010 if there would be more of them
--
-- made: int.
SELECT
    make_task_partitions(
        ARRAY(
            SELECT at
            FROM generate_series(now(), now() + INTERVAL '3 months', ('1 ' || $1)::interval) AS at
        ),
        $1::text, $2::int, $3::int
    ) AS made
WHERE current_setting('transaction_read_only') = 'off'
