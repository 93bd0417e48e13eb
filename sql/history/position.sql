-- position: what the statement writes, to wait for it; other files write it as :own_position.
--
-- Its timeline, a position in the WAL before the commit, and the transaction, joined by '-'.
-- The message makes the commit wait for the synchronous standbys even if the statement changes
-- nothing, because what it found may be a commit whose own wait was cancelled.
concat_ws(
    '-',
    left(pg_walfile_name(pg_current_wal_insert_lsn()), 8),
    pg_logical_emit_message(TRUE, 'task-audit', ''::text),
    pg_current_xact_id()
)
