-- server: names the server that a statement runs on; other files write it as :server.
--
-- It is the start of the server, the end of its last recovery and the table. Positions in the log
-- of two servers cannot be compared.
concat_ws(
    ' ', pg_postmaster_start_time(),
    CASE WHEN NOT pg_is_in_recovery() THEN pg_last_wal_replay_lsn() END,
    current_database(), 'tasks'::regclass::oid
)
