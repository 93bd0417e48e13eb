-- lock_tally: let no other session count the same filter until the transaction ends; one row.
--
-- :tally names the filter.
SELECT
    pg_advisory_xact_lock(
        hashtext('task_tallies'), hashtext(encode(:tally::bytea, 'hex'))
    ) AS locked
