-- add_running: says which process executes a task.
INSERT OR REPLACE INTO running (task_id, host, pid, boot_id, started)
VALUES (:task_id, :host, :pid, :boot_id, :started);
