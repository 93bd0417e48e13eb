-- measure_deltas: how much is noted for the counts and not folded yet; one row, at flat cost.
--
-- estimate: bigint, rows, as PostgreSQL keeps account of them. size_bytes: bigint, on disk.
SELECT
    pg_stat_get_live_tuples('task_count_deltas'::regclass) AS estimate,
    pg_table_size('task_count_deltas'::regclass) AS size_bytes
