-- read_departure: when the next task leaves a window that begins at :since; one row.
--
-- It looks at the 32 oldest tasks up to :search_until.
-- departing: timestamptz, created_at of the first task that matches the filter. If none of these
-- tasks does, it is a time before which no other task can.
SELECT
    COALESCE(
        min(match_at),
        CASE WHEN count(*) = 32 THEN max(created_at) ELSE :search_until::timestamptz END
    ) AS departing
FROM (
    SELECT
        created_at,
        CASE WHEN :filter THEN created_at END AS match_at
    FROM tasks
    WHERE created_at >= :since AND created_at < :search_until
    ORDER BY created_at
    LIMIT 32
) AS oldest
