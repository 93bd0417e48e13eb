-- rebuild_counts: count all tasks anew; one row.
--
-- counted: bigint, how many tasks. In a REPEATABLE READ transaction.
SELECT rebuild_task_counts() AS counted
