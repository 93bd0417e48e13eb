-- Recorded tasks are never left without guards: this fails if there is one.
LOCK TABLE tasks IN ACCESS EXCLUSIVE MODE;

DO $$
BEGIN
    IF EXISTS (SELECT FROM tasks) THEN
        RAISE EXCEPTION 'tasks are recorded: rolling back would lose them';
    END IF;
END
$$;

DROP TRIGGER refuse_lone ON task_keys;
DROP FUNCTION refuse_lone_keys;
DROP TRIGGER keep_keys ON tasks;
DROP FUNCTION keep_task_keys;
DROP TRIGGER refuse_truncate ON task_keys;
DROP TRIGGER refuse_change ON task_keys;
DROP TRIGGER refuse_truncate ON tasks;
DROP TRIGGER refuse_delete ON tasks;
DROP TRIGGER guard_recorded_at ON tasks;
DROP FUNCTION refuse_recorded_at;
DROP TRIGGER guard_change ON tasks;
DROP FUNCTION guard_task_change;
