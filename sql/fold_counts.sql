-- fold_counts: move deltas of the counts into the counts; one row.
--
-- $1 most bigint  how many deltas, at most
--
-- folded: bigint, how many; NULL where another session is at it. In a REPEATABLE READ transaction.
-- may_vacuum: whether vacuum_deltas is for us; before PostgreSQL 17 that is for an owner alone.
SELECT
    fold_task_counts($1::bigint) AS folded,
    CASE
        WHEN current_setting('server_version_num')::int >= 170000
            THEN has_table_privilege(oid, 'MAINTAIN')
        ELSE pg_has_role(relowner, 'USAGE')
    END AS may_vacuum
FROM pg_class
WHERE oid = 'task_count_deltas'::regclass
