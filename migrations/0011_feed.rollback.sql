DROP FUNCTION read_task_feed;
