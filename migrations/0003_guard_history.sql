-- What a task may not do, held by the database whoever asks.
--
-- The triggers guard against accidents and against ordinary roles. An owner of the tables can
-- drop them and a superuser can switch them off: prove a history against those elsewhere.
--
-- SQLSTATE TA001 the task is terminal, TA002 a step backwards, TA003 a column that may not
-- change, TA004 DELETE or TRUNCATE, TA005 a time that only the database may set, TA006 a write to
-- a partition, which the statement triggers of tasks would not see.
--
-- depends: 0002_make_partitions

DO $$
BEGIN
    PERFORM set_config('search_path', quote_ident(current_schema()) || ', pg_temp', TRUE);
END
$$;

CREATE FUNCTION guard_task_change() RETURNS trigger
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
BEGIN
    IF is_terminal(OLD.status) THEN
        RAISE EXCEPTION 'task % is % and can no longer change', OLD.task_id, OLD.status
            USING ERRCODE = 'TA001';
    END IF;
    IF NEW.status < OLD.status THEN
        RAISE EXCEPTION 'task % cannot go back from % to %', OLD.task_id, OLD.status, NEW.status
            USING ERRCODE = 'TA002';
    END IF;
    IF (NEW.task_id, NEW.project_id, NEW.created_at, NEW.recorded_at, NEW.request_text, NEW.created_by)
        IS DISTINCT FROM
        (OLD.task_id, OLD.project_id, OLD.created_at, OLD.recorded_at, OLD.request_text, OLD.created_by)
    THEN
        RAISE EXCEPTION 'task %: only its state and findings may change', OLD.task_id
            USING ERRCODE = 'TA003';
    END IF;
    IF NEW.status = 'approved' AND OLD.status < 'approved' THEN
        NEW.approved_at := COALESCE(NEW.approved_at, now());
    END IF;
    IF is_terminal(NEW.status) THEN
        NEW.completed_at := COALESCE(NEW.completed_at, now());
    END IF;
    RETURN NEW;
END
$$;

CREATE TRIGGER guard_change BEFORE UPDATE ON tasks
FOR EACH ROW EXECUTE FUNCTION guard_task_change();

CREATE FUNCTION refuse_recorded_at() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'recorded_at is the clock of the database: leave it out'
        USING ERRCODE = 'TA005';
END
$$;

CREATE TRIGGER guard_recorded_at BEFORE INSERT ON tasks
FOR EACH ROW WHEN (new.recorded_at IS DISTINCT FROM now())
EXECUTE FUNCTION refuse_recorded_at();

CREATE TRIGGER refuse_delete BEFORE DELETE ON tasks
FOR EACH ROW EXECUTE FUNCTION refuse_task_removal();

CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON tasks
EXECUTE FUNCTION refuse_task_removal();

CREATE TRIGGER refuse_change BEFORE UPDATE OR DELETE ON task_keys
FOR EACH ROW EXECUTE FUNCTION refuse_task_removal();

CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON task_keys
EXECUTE FUNCTION refuse_task_removal();

-- Every task has its key. The service writes keys, with their digests, before the tasks; this
-- adds those of tasks that come by other ways, and fails where another task has the id.
CREATE FUNCTION keep_task_keys() RETURNS trigger
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path FROM CURRENT
AS $$
BEGIN
    INSERT INTO task_keys (task_id, created_at)
    SELECT task_id, created_at
    FROM recorded
    WHERE NOT EXISTS (
        SELECT FROM task_keys
        WHERE task_keys.task_id = recorded.task_id
            AND task_keys.created_at = recorded.created_at
    );
    RETURN NULL;
END
$$;

CREATE TRIGGER keep_keys AFTER INSERT ON tasks
REFERENCING NEW TABLE AS recorded
FOR EACH STATEMENT EXECUTE FUNCTION keep_task_keys();
