-- get_versions: the versions of a task after its events, oldest first; one row for each event.
--
-- They begin after the event :after, and are at most :limit.
-- document: text, the task with every column, as it was after the event.
-- The newest version is the row of the task. Each version before it is made from the one after it,
-- by putting back the values that the event replaced.
WITH RECURSIVE event AS MATERIALIZED (
    SELECT event_id, was, row_number() OVER (ORDER BY event_id DESC) AS age
    FROM history_of_task(:task_id::uuid, :after::bigint)
),

version AS (
    SELECT 1::bigint AS age, tasks AS task
    FROM tasks
    WHERE task_id = :task_id AND created_at = created_at_of(:task_id)
    UNION ALL
    SELECT version.age + 1, jsonb_populate_record(version.task, event.was)
    FROM version
    INNER JOIN event ON version.age = event.age
)

SELECT task_document(version.task) AS document
FROM event
INNER JOIN version ON event.age = version.age
ORDER BY event.event_id
LIMIT :limit::int
