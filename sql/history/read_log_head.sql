-- read_log_head: how many events have a position in the log; one row.
--
-- is_standby: boolean, whether the server replays the log of another.
-- delay_seconds: float8, the age of the event at the position :known; NULL if there is none yet.
SELECT
    task_log_size() AS log_size,
    pg_is_in_recovery() AS is_standby,
    (
        SELECT extract(EPOCH FROM clock_timestamp() - at)::float8
        FROM task_events
        WHERE position = :known::bigint
    ) AS delay_seconds
