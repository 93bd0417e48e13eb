-- make_partitions: make partitions that hold these times, where there are none; one row.
--
--  $1 times           timestamptz[]  in any order; NULL: now; what is too far ahead is passed over
--  $2 width           text           'month', 'week' or 'day'
--  $3 most            int            make no more than that: run it again until it makes none
--  $4 most_partitions int            raise TA010 if there would be more of them
--
-- made: int.
SELECT
    make_task_partitions(
        ARRAY(
            SELECT DISTINCT date_trunc('day', coalesce(held_at, now()), 'UTC')
            FROM unnest($1::timestamptz[]) AS held_at
            WHERE held_at IS NULL OR held_at < now() + INTERVAL '2 days'
        ),
        $2::text, $3::int, $4::int
    ) AS made
