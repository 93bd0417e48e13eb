-- position: what the statement writes, to wait for it; other files write it as :own_position.
--
-- Its timeline, a position in the WAL before the commit, and the transaction, joined by '-'.
concat_ws(
    '-', left(pg_walfile_name(pg_current_wal_insert_lsn()), 8), pg_current_wal_insert_lsn(),
    pg_current_xact_id()
)
