-- read_changes: which events of tasks a reader has not seen yet; one row.
--
-- The reader has seen the :known_size first events of the log, and the others with an event_id up
-- to :seen_to, except for :gaps. A first reader passes NULL as :known_size.
-- snapshot, clock: as in read_snapshot. server, tables: text, as in the files of these names.
-- timeline, lsn: a place in the WAL, in bytes, after all that is seen; NULL without a primary.
-- log_size: how many events the log has. queued: how many have no position, at most 10 * :most + 1.
-- newest_queued: the greatest event_id of these; 0 if there are none.
-- changes: json, an array for each event not seen: event_id, task_id, created_at, project_id,
-- created_by, and status, services_touched, intent after the change, then before. NULL: maybe more
-- than :most. documents: json, an object from the task_id of each to the task as lists show it,
-- without long ones; NULL if there are no events or more than :most_documents.
WITH wal AS MATERIALIZED (
    SELECT
        CASE WHEN NOT pg_is_in_recovery() THEN pg_current_wal_insert_lsn() END AS place,
        :most::int AS most
)

SELECT
    :snapshot AS snapshot,
    date_trunc('second', now()) AS clock,
    :server AS server,
    :tables AS tables,
    left(pg_walfile_name(wal.place), 8) AS timeline,
    -- If the next record begins a page, the place is after the header of the page, and what is
    -- replayed ends before it.
    (wal.place - '0/0')::bigint
    - CASE
        WHEN mod(wal.place - '0/0', current_setting('wal_block_size')::int) = 24 THEN 24 ELSE 0
    END AS lsn,
    log_size,
    queued,
    newest_queued,
    changes,
    documents
FROM
    wal,
    -- `wal.most` makes PostgreSQL read the place first. The function may prune pages. That adds WAL
    -- which no commit flushes, and a standby would wait for it.
    LATERAL read_task_changes(
        :known_size::bigint, :seen_to::bigint, :gaps::bigint[], wal.most, :most_documents::int
    )
