DROP FUNCTION read_task_changes;
DROP FUNCTION save_task_tally;
DROP FUNCTION tally_task_changes;
DROP FUNCTION locate_page;
DROP FUNCTION locate_task;
DROP FUNCTION count_tasks_from;
DROP FUNCTION count_edge;
DROP FUNCTION count_bucket;
