DROP FUNCTION read_task_changes;
