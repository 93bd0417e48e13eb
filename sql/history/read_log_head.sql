-- read_log_head: how many events have a position in the log; one row.
--
-- delay_seconds: float8, the age of the event at the position :known; NULL if there is none yet.
SELECT
    task_log_size() AS log_size,
    (
        SELECT extract(EPOCH FROM clock_timestamp() - at)::float8
        FROM task_events
        WHERE position = :known::bigint
    ) AS delay_seconds
