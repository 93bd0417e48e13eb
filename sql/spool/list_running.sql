-- list_running: returns the tasks that are being executed, and the process of each.
SELECT task_id, host, pid, boot_id, started
FROM running;
