-- Recorded tasks are never deleted: this fails if there is one.
LOCK TABLE tasks IN ACCESS EXCLUSIVE MODE;

DO $$
BEGIN
    IF EXISTS (SELECT FROM tasks) THEN
        RAISE EXCEPTION 'tasks are recorded: rolling back would lose them';
    END IF;
END
$$;

-- btree_gin stays: something else in the database may use it.
DROP FUNCTION text_of_equal_numbers;
DROP FUNCTION task_is_as;
DROP FUNCTION task_matches;
DROP FUNCTION task_etag;
DROP FUNCTION task_document;
DROP FUNCTION rfc3339;
DROP FUNCTION created_at_of_all;
DROP FUNCTION created_at_of;
DROP TABLE task_keys;
DROP TABLE tasks;
DROP FUNCTION are_service_names;
DROP FUNCTION is_terminal;
DROP TYPE task_status;
