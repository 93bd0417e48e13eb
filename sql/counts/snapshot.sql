-- snapshot: names what a statement sees; other files write it as :snapshot.
--
-- While the text is the same, no statement finds other tasks. A primary names its snapshot, which is
-- the set of transactions that have ended. On a standby, a snapshot does not name every transaction.
-- There the number of events stands for it, because each change of a task adds an event, and changes
-- appear in one order. The start time and the replayed position tell servers, restarts and
-- recoveries apart. The database and the table tell apart databases and schemas, which share a
-- server's snapshots.
concat_ws(
    ' ',
    CASE
        WHEN pg_is_in_recovery() THEN concat(task_event_count(), ' events')
        ELSE concat_ws(' ', pg_last_wal_replay_lsn(), pg_current_snapshot())
    END,
    pg_postmaster_start_time(), current_database(), 'tasks'::regclass::oid
)
