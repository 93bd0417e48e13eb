-- remove_running: forgets which process executes a task.
DELETE FROM running
WHERE task_id = :task_id;
