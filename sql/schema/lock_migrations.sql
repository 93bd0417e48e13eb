-- lock_migrations: wait until no other migrator is at work, then keep the others waiting.
--
-- The lock ends with the session, however that ends. It exempts itself from lock_timeout: another
-- migrator may take long.
SELECT
    set_config('lock_timeout', '0', FALSE) AS lock_timeout,
    pg_advisory_lock(hashtext('task-audit migrations')) AS locked,
    set_config('lock_timeout', '200ms', FALSE) AS lock_timeout_again
