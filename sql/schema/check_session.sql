-- check_session: which server the session is on, and the settings that it has; one row.
--
-- $1 names text[]  the settings to read
--
-- server: text, differs between servers, and between two starts of one.
-- pid: int, the server's process. Behind a pooler it is not the one that the protocol names.
-- is_read_only: boolean, whether a write would be refused.
-- is_standby: boolean, whether the server replays another's changes.
-- cluster: text, the same for a primary and its standbys.
-- timeline: text, that of a primary, which it keeps until it restarts; NULL on a standby.
-- settings: text[], in the order of $1.
SELECT
    extract(EPOCH FROM pg_postmaster_start_time())::text AS server,
    pg_backend_pid() AS pid,
    current_setting('transaction_read_only')::boolean AS is_read_only,
    pg_is_in_recovery() AS is_standby,
    (SELECT system_identifier FROM pg_control_system())::text AS cluster,
    CASE
        WHEN NOT pg_is_in_recovery() THEN left(pg_walfile_name(pg_current_wal_insert_lsn()), 8)
    END AS timeline,
    (
        SELECT array_agg(current_setting(wanted.name) ORDER BY wanted.place)
        FROM unnest($1::text[]) WITH ORDINALITY AS wanted (name, place)
    ) AS settings
