-- Events are never deleted: this fails if there is one.
LOCK TABLE tasks, task_event_queue, task_events IN ACCESS EXCLUSIVE MODE;

DO $$
BEGIN
    IF EXISTS (SELECT FROM task_event_queue) OR EXISTS (SELECT FROM task_events) THEN
        RAISE EXCEPTION 'changes are recorded: rolling back would lose who made them';
    END IF;
END
$$;

DROP TRIGGER queue_changed ON tasks;
DROP TRIGGER queue_recorded ON tasks;
DROP FUNCTION sequence_task_events;
DROP FUNCTION require_own_transaction;
DROP FUNCTION append_task_log_mark;
DROP FUNCTION note_task_timeline;
DROP FUNCTION make_event_partition;
DROP FUNCTION update_tasks;
DROP FUNCTION update_task;
DROP FUNCTION record_tasks;
DROP FUNCTION queue_changed_tasks;
DROP FUNCTION queue_recorded_tasks;
DROP FUNCTION audit_setting;
DROP FUNCTION task_was;
DROP FUNCTION time_as_json;
DROP FUNCTION task_content;
DROP FUNCTION task_event_count;
DROP FUNCTION task_log_size;
DROP VIEW task_history;
DROP VIEW task_log_state;
DROP TABLE task_timelines;
DROP TABLE task_log_marks;
DROP TABLE task_events;
DROP TABLE task_event_queue;
DROP FUNCTION assign_transaction_id;
DROP FUNCTION refuse_event_change;
DROP TYPE task_event_kind;
