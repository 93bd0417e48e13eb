-- measure_log: how large the event log is, and how many events wait for a position; one row.
--
-- events: bigint, events with a position. bytes: bigint, their size on disk. queued: bigint, events
-- without a position. queue_bytes: bigint, the size of the queue on disk. queued_seconds: float8,
-- the age of the oldest event in the queue; 0 if there is none.
SELECT
    task_log_size() AS events,
    (
        SELECT sum(pg_total_relation_size(relid))::bigint FROM pg_partition_tree('task_events')
    ) AS bytes,
    queued,
    pg_total_relation_size('task_event_queue'::regclass) AS queue_bytes,
    COALESCE(extract(EPOCH FROM clock_timestamp() - oldest_at), 0)::float8 AS queued_seconds
FROM measure_task_queue()
