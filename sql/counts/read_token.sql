-- read_token: what tells whether any task can have changed since it was read before; one row.
--
-- token: text. A snapshot is the set of transactions that have ended: while it is the same, no
-- statement finds other rows. The two before it tell servers, restarts and recoveries apart; on a
-- standby, whose snapshots do not name every transaction, the second moves with each change. Those
-- after it tell databases and schemas of one server apart, which have their snapshots in common.
-- clock: timestamptz, the database's, rounded down to a second.
SELECT
    concat_ws(
        ' ', pg_postmaster_start_time(), pg_last_wal_replay_lsn(), pg_current_snapshot(),
        current_database(), 'tasks'::regclass::oid
    ) AS token,
    date_trunc('second', now()) AS clock
