-- What statements need that change the tasks of several requests.
--
-- depends: 0008_event_log

DO $$ BEGIN
    PERFORM set_config('search_path', quote_ident(current_schema()) || ', pg_temp', TRUE);
END $$;

-- When the tasks of several ids were created. It is IMMUTABLE for the same reason as created_at_of.
CREATE FUNCTION created_at_of_all(tasks uuid[]) RETURNS timestamptz[]
LANGUAGE sql IMMUTABLE
RETURN ARRAY(
    SELECT DISTINCT task_keys.created_at FROM task_keys WHERE task_keys.task_id = ANY(tasks)
);
