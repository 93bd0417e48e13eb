-- export_ndjson: the tasks that match in one partition as JSON objects, newest first; for COPY.
--
-- document: text, a task with all its members.
SELECT task_document(tasks) AS document
FROM tasks
WHERE
    :filter
    AND :exported
ORDER BY created_at DESC, task_id DESC
