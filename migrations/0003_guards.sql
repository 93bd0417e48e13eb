-- What the database refuses, whichever program asks.
--
-- The triggers guard against mistakes and against ordinary roles. The owner of the tables can drop
-- them. A superuser, or a role that may set session_replication_role, can skip ordinary triggers
-- without a trace; those that are ENABLE ALWAYS fire all the same. They keep what is recorded as it
-- is. The others look at what is new, which a subscriber of logical replication takes as the
-- publisher recorded it.
--
-- SQLSTATE TA001 the task is terminal, TA002 a step backwards, TA003 a column that may not change,
-- TA004 DELETE or TRUNCATE, TA005 a time that only the database may set, TA007 a key without its
-- task.
--
-- depends: 0002_partitions

DO $$ BEGIN
    PERFORM set_config('search_path', quote_ident(current_schema()) || ', pg_temp', TRUE);
END $$;

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

ALTER TABLE tasks ENABLE ALWAYS TRIGGER guard_change;
ALTER TABLE tasks ENABLE ALWAYS TRIGGER refuse_delete;
ALTER TABLE tasks ENABLE ALWAYS TRIGGER refuse_truncate;
ALTER TABLE task_keys ENABLE ALWAYS TRIGGER refuse_change;
ALTER TABLE task_keys ENABLE ALWAYS TRIGGER refuse_truncate;

-- Every task has its key. The service inserts keys, with their digests, before the tasks. This adds
-- the keys of tasks that other programs insert, and fails if another task has the id.
--
-- A session plans the statement once, maybe while there are few tasks, and then records millions.
-- OFFSET keeps PostgreSQL from making a join of it: each key is looked up by index.
CREATE FUNCTION keep_task_keys() RETURNS trigger
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path FROM CURRENT
SET enable_seqscan = off
AS $$
BEGIN
    INSERT INTO task_keys (task_id, created_at)
    SELECT task_id, created_at
    FROM recorded
    WHERE NOT EXISTS (
        SELECT FROM task_keys
        WHERE task_keys.task_id = recorded.task_id
            AND task_keys.created_at = recorded.created_at
        OFFSET 0
    );
    RETURN NULL;
END
$$;

CREATE TRIGGER keep_keys AFTER INSERT ON tasks
REFERENCING NEW TABLE AS recorded
FOR EACH STATEMENT EXECUTE FUNCTION keep_task_keys();

-- A key comes with its task: nobody can take an id so that a task cannot be recorded.
--
-- The keys of each month are checked by a statement whose range is known when it is planned: it
-- opens the partitions of this range alone. OFFSET: as in keep_task_keys.
CREATE FUNCTION refuse_lone_keys() RETURNS trigger
LANGUAGE plpgsql
SET search_path FROM CURRENT
SET enable_seqscan = off
SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    first_at timestamptz;
    last_at timestamptz;
    lone uuid;
BEGIN
    FOR first_at, last_at IN
        SELECT min(created_at), max(created_at)
        FROM claimed
        GROUP BY date_trunc('month', created_at)
    LOOP
        SELECT claimed.task_id INTO lone
        FROM claimed
        WHERE claimed.created_at BETWEEN first_at AND last_at
            AND NOT EXISTS (
                SELECT
                FROM tasks
                WHERE tasks.task_id = claimed.task_id
                    AND tasks.created_at = claimed.created_at
                    AND tasks.created_at BETWEEN first_at AND last_at
                OFFSET 0
            )
        LIMIT 1;
        IF FOUND THEN
            RAISE EXCEPTION 'no task % is recorded: its key comes with it', lone
                USING ERRCODE = 'TA007';
        END IF;
    END LOOP;
    RETURN NULL;
END
$$;

CREATE TRIGGER refuse_lone AFTER INSERT ON task_keys
REFERENCING NEW TABLE AS claimed
FOR EACH STATEMENT EXECUTE FUNCTION refuse_lone_keys();
