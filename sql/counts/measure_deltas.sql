-- measure_deltas: how many events the counts do not contain yet; one row.
--
-- deltas: bigint.
SELECT task_event_count() - counted AS deltas
FROM task_log_state
