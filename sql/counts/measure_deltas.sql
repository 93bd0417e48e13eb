-- measure_deltas: how many events the counts do not contain yet; one row.
--
-- estimate: bigint, events. size_bytes: bigint, of the queue on disk.
SELECT
    task_event_count() - counted AS estimate,
    pg_table_size('task_event_queue'::regclass) AS size_bytes
FROM task_log_state
