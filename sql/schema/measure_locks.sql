-- measure_locks: whether a statement may lock all partitions; one row.
--
-- partitions: bigint. needed: bigint, the locks of a statement that touches all of them and their
-- indexes. room: bigint, for how many PostgreSQL has room, those of all sessions together.
SELECT
    count(*) AS partitions,
    count(*) * (
        1 + (SELECT count(*) FROM pg_index WHERE indrelid = 'tasks'::regclass)
    ) AS needed,
    current_setting('max_locks_per_transaction')::bigint * (
        current_setting('max_connections')::bigint
        + current_setting('max_prepared_transactions')::bigint
    ) AS room
FROM pg_inherits
WHERE inhparent = 'tasks'::regclass
