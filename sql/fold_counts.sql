-- fold_counts: move deltas of the counts into the counts; one row.
--
-- $1 most bigint  how many deltas, at most
--
-- folded: bigint, how many; NULL where another session is at it. In a REPEATABLE READ transaction.
SELECT fold_task_counts($1::bigint) AS folded
