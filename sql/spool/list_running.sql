-- list_running: returns the tasks that are being executed, when the process of each was first found
-- to have ended, and the process.
SELECT task_id, gone_at, host, pid, boot_id, started
FROM running;
