DROP FUNCTION task_etag;
ALTER TABLE tasks DROP CONSTRAINT tasks_length;
