-- find_positions: whether what the server sees contains some positions; one row.
--
-- :timelines, :places and :transactions are their parts, as in position.sql.
-- states: text[], in the same order: 'contained', 'awaited' or 'unknown'. timeline: text, that of a
-- primary; NULL on a standby.
-- A transaction of an earlier timeline is unknown if a failover may have lost it.
WITH server AS MATERIALIZED (
    SELECT
        CASE
            WHEN NOT pg_is_in_recovery() THEN left(pg_walfile_name(pg_current_wal_insert_lsn()), 8)
        END AS timeline,
        (SELECT max(number) FROM task_timelines) AS newest,
        pg_snapshot_xmax(pg_current_snapshot()) AS next_transaction
),

asked AS (
    SELECT
        item.number,
        item.timeline,
        item.place::pg_lsn AS place,
        item.transaction::xid8 AS transaction,
        server.timeline AS server_timeline,
        server.next_transaction,
        timeline_of_newest.timeline AS newest_timeline,
        own.number AS own_number,
        own.number < server.newest OR own.timeline <> server.timeline AS is_left,
        CASE
            WHEN own.number < server.newest THEN following.began_at
            ELSE pg_last_wal_replay_lsn()
        END AS left_at
    FROM server
    CROSS JOIN
        unnest(:timelines::text[], :places::text[], :transactions::text[])
        WITH ORDINALITY AS item (timeline, place, transaction, number)
    LEFT JOIN task_timelines AS timeline_of_newest ON server.newest = timeline_of_newest.number
    LEFT JOIN LATERAL (
        SELECT
            task_timelines.number,
            task_timelines.timeline
        FROM task_timelines
        WHERE task_timelines.timeline = item.timeline
        ORDER BY task_timelines.number DESC
        LIMIT 1
    ) AS own ON TRUE
    LEFT JOIN task_timelines AS following ON own.number + 1 = following.number
)

SELECT
    array_agg(
        CASE
            WHEN timeline = server_timeline THEN 'contained'
            WHEN own_number IS NULL
                THEN
                    CASE
                        WHEN timeline > COALESCE(server_timeline, newest_timeline, '')
                            THEN 'awaited'
                        ELSE 'unknown'
                    END
            WHEN is_left AND (place <= left_at) IS NOT TRUE THEN 'unknown'
            WHEN transaction >= next_transaction THEN 'awaited'
            WHEN pg_xact_status(transaction) = 'in progress' THEN 'awaited'
            WHEN pg_xact_status(transaction) = 'aborted'
                THEN CASE WHEN is_left THEN 'unknown' ELSE 'awaited' END
            ELSE 'contained'
        END
        ORDER BY number
    ) AS states,
    min(server_timeline) AS timeline
FROM asked
