-- read_token: the snapshot now, and the time; one row.
--
-- token: text. While it is the same, no task has changed.
-- clock: timestamptz, the time of the database, rounded down to a second.
SELECT
    :snapshot AS token,
    date_trunc('second', now()) AS clock
