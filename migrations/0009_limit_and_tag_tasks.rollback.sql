DROP FUNCTION task_is_as;
DROP FUNCTION task_matches;
DROP FUNCTION task_etag;
ALTER TABLE tasks DROP CONSTRAINT tasks_length;
