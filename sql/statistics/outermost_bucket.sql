-- outermost_bucket: where the oldest or the newest task is that matches, by the counts; one row.
--
-- :service is '' for all tasks. :is_newest: the newest one.
-- since, until: the task was created between them; NULL if no task matches.
SELECT since, until
FROM outermost_bucket(
    :service::text, :statuses::task_status[], :intents::text[], :is_newest::boolean
)
