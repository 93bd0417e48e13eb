-- begin_event_times: let the events of this transaction have the times of a made-up history.
--
-- An event has the time of its transaction. The events of a demo would all have the same one. Until
-- end_event_times, a trigger gives each event the time at which the task says that it got its
-- state. Nobody else sees the trigger, because the transaction removes it. Only the owner of the
-- queue can do this: PostgreSQL refuses it to the role that serves.
DO $do$
BEGIN
    LOCK TABLE task_event_queue IN ACCESS EXCLUSIVE MODE;

    CREATE FUNCTION pg_temp.set_event_time() RETURNS trigger
    LANGUAGE plpgsql AS $$
    BEGIN
        SELECT
            CASE NEW.status
                WHEN 'pending' THEN task.created_at
                WHEN 'approved' THEN task.approved_at
                -- Up to a second after the approval.
                WHEN 'executing'
                    THEN task.approved_at + (hashtext(NEW.task_id::text) & 1023) * interval '1 ms'
                ELSE task.completed_at
            END
        INTO NEW.at
        FROM tasks AS task
        WHERE task.task_id = NEW.task_id AND task.created_at = NEW.created_at;
        RETURN NEW;
    END
    $$;

    CREATE TRIGGER set_event_time BEFORE INSERT ON task_event_queue
    FOR EACH ROW EXECUTE FUNCTION pg_temp.set_event_time();
END
$do$
