-- read_snapshot: the snapshot and the time now; one row.
--
-- snapshot: text. While it is the same, no task has changed.
-- clock: timestamptz, the time of the database, rounded down to a second.
SELECT
    :snapshot AS snapshot,
    date_trunc('second', now()) AS clock
