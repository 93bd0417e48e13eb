-- remove_running: forgets a task that has ended.
DELETE FROM running
WHERE task_id = :task_id;
