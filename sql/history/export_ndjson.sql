-- export_ndjson: the tasks that match in one partition as JSON objects, newest first; for COPY.
--
-- :place is the range of the partition, a value in the plan. The tasks are those after the task
-- :after_id, which was created at :after_at, if these are not NULL.
-- document: text, a task with all its members.
SELECT task_document(tasks) AS document
FROM tasks
WHERE
    :filter
    AND created_at >= (:place::timestamptz[])[1]
    AND created_at < (:place::timestamptz[])[2]
    AND (
        :after_at::timestamptz IS NULL
        OR ((created_at, task_id) < (:after_at, :after_id::uuid) AND created_at <= :after_at)
    )
ORDER BY created_at DESC, task_id DESC
