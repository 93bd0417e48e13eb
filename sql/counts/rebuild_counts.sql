-- rebuild_counts: count all tasks anew; one row. Not in a transaction block.
--
-- counted: bigint, how many tasks.
SELECT rebuild_task_counts() AS counted
