-- The partitions go with tasks, in the rollback of 0001.
DROP FUNCTION make_task_partition;
DROP FUNCTION refuse_partition_write CASCADE;
DROP FUNCTION refuse_task_removal CASCADE;
DROP VIEW task_partitions;
