-- read_replayed: what a standby has replayed, which later snapshots see; one row.
--
-- tables: text, as in tables.sql. timeline: text, the newest one that a sequencer has worked on, or
-- that of a primary. lsn: bigint, the bytes of WAL before the replayed position. NULL: the server
-- is not a standby.
SELECT
    :tables AS tables,
    CASE
        WHEN pg_is_in_recovery()
            THEN (SELECT timeline FROM task_timelines ORDER BY number DESC LIMIT 1)
        ELSE left(pg_walfile_name(pg_current_wal_insert_lsn()), 8)
    END AS timeline,
    CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() - '0/0' END::bigint AS lsn
