-- measure_rows: how many tasks match, and when the first and the last was created; one row.
--
-- It looks at the tasks between :read_since and :read_until; NULL: no bound.
-- n: bigint. oldest, newest: timestamptz; NULL if no task matches.
SELECT
    count(*) AS n,
    min(created_at) AS oldest,
    max(created_at) AS newest
FROM tasks
WHERE
    :filter
    AND (:read_since::timestamptz IS NULL OR created_at >= :read_since)
    AND (:read_until::timestamptz IS NULL OR created_at < :read_until)
