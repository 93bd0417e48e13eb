-- The partitions stay. They are dropped with tasks, in the rollback of 0001_tasks.
DROP FUNCTION make_task_partition;
DROP FUNCTION make_task_partitions;
DROP FUNCTION refuse_partition_write CASCADE;
DROP FUNCTION refuse_task_removal CASCADE;
DROP VIEW task_partitions;
