-- fold_counts: move a portion of the deltas into the counts; one row. Not in a transaction block.
--
-- $1 most_cells    bigint  a delta counts two for each of its services, and two for all tasks
-- $2 split_seconds float8  start no split of a bucket later than that
--
-- folded: bigint, how many were moved; NULL where another session folds. is_last: boolean, whether
-- none was left. may_vacuum: whether we may run vacuum_deltas; before PostgreSQL 17 only an owner.
SELECT
    fold.folded,
    fold.is_last,
    CASE
        WHEN current_setting('server_version_num')::int >= 170000
            THEN has_table_privilege(deltas.oid, 'MAINTAIN')
        ELSE pg_has_role(deltas.relowner, 'USAGE')
    END AS may_vacuum
FROM fold_task_counts($1::bigint, $2::float8) AS fold
CROSS JOIN pg_class AS deltas
WHERE deltas.oid = 'task_count_deltas'::regclass
