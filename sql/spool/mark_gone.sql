-- mark_gone: says when the process of a task was first found to have ended.
UPDATE running
SET gone_at = :gone_at
WHERE task_id = :task_id;
