-- fold_counts: count the next events of the log; one row, or none where the server accepts no
-- writes. Not in a transaction block.
--
-- :most_cells: an event costs two for each service before and after it, and two for all tasks.
-- :split_seconds: start no split of a bucket later than that. :is_lazy: count nothing while few
-- events wait and old versions of the counts cannot be removed.
--
-- folded: bigint, how many were counted; NULL where another session folds. is_last: boolean,
-- whether none was left that has a position.
SELECT folded, is_last
FROM fold_task_counts(:most_cells::bigint, :split_seconds::float8, :is_lazy::boolean)
WHERE current_setting('transaction_read_only') = 'off'
