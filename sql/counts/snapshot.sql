-- snapshot: names what a statement sees; other files write it as :snapshot.
--
-- A snapshot is the set of transactions that have ended. While it is the same, no statement finds
-- other rows. The start time and the replayed position tell servers, restarts and recoveries apart.
-- On a standby, whose snapshots do not name every transaction, the position moves with each change.
-- The database and the table tell apart databases and schemas, which share a server's snapshots.
concat_ws(
    ' ', pg_postmaster_start_time(), pg_last_wal_replay_lsn(), pg_current_snapshot(),
    current_database(), 'tasks'::regclass::oid
)
