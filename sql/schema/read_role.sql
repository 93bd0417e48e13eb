-- read_role: what the server is in its cluster; one row.
--
-- role: text, 'primary'; 'standby' where it replays the changes of a primary; 'read-only' where it
-- replays none, but its configuration refuses writes.
-- lag_seconds: float8, how old the state is that queries on a standby see, at most; NULL on others.
-- It is 0 while all that a connected primary has sent is replayed. Otherwise it is the time since
-- the last replayed commit, by the clocks of both servers.
SELECT
    CASE
        WHEN pg_is_in_recovery() THEN 'standby'
        WHEN current_setting('transaction_read_only') = 'on' THEN 'read-only'
        ELSE 'primary'
    END AS role,
    CASE
        WHEN NOT pg_is_in_recovery() THEN NULL
        WHEN
            pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn()
            AND EXISTS (SELECT FROM pg_stat_wal_receiver WHERE pid IS NOT NULL)
            THEN 0
        ELSE
            greatest(
                extract(EPOCH FROM clock_timestamp() - pg_last_xact_replay_timestamp())::float8, 0
            )
    END AS lag_seconds
