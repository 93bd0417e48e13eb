-- measure_replication: what standbys, slots and transactions keep a primary from removing; one row.
-- On a standby, it says nothing of slots and standbys.
--
-- snapshot_age: bigint, the age of the oldest snapshot or transaction, in transactions.
-- slot_xmin_age: bigint, that of the rows that slots keep; 0 if no slot keeps rows.
-- inactive_slots: bigint. retained_bytes: bigint, the most WAL that a slot keeps; 0 without a slot.
-- standbys: text[], lag_bytes: bigint[], lag_seconds: float8[], of each standby that is connected:
-- its name, and how far its replay is behind; NULL unless the role is a member of pg_monitor.
SELECT
    greatest(
        age(pg_snapshot_xmin(pg_current_snapshot())::xid),
        (SELECT max(age(backend_xmin)) FROM pg_stat_activity)
    )::bigint AS snapshot_age,
    COALESCE(slot.xmin_age, 0)::bigint AS slot_xmin_age,
    slot.inactive AS inactive_slots,
    COALESCE(slot.retained_bytes, 0)::bigint AS retained_bytes,
    standby.names AS standbys,
    standby.lag_bytes,
    standby.lag_seconds
FROM
    (
        SELECT
            max(age(xmin)) AS xmin_age,
            count(*) FILTER (WHERE NOT active) AS inactive,
            max(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)) AS retained_bytes
        FROM pg_replication_slots
        WHERE NOT pg_is_in_recovery()
    ) AS slot
CROSS JOIN
    (
        SELECT
            array_agg(name) AS names,
            array_agg(bytes) AS lag_bytes,
            array_agg(seconds) AS lag_seconds
        FROM (
            SELECT
                application_name AS name,
                max(pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn))::bigint AS bytes,
                max(COALESCE(extract(EPOCH FROM replay_lag), 0))::float8 AS seconds
            FROM pg_stat_replication
            WHERE replay_lsn IS NOT NULL AND NOT pg_is_in_recovery()
            GROUP BY application_name
        ) AS each_standby
    ) AS standby
