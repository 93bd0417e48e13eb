-- get_task: one task whole, as a JSON object; no row where the id is not recorded.
--
-- $1 task_id    uuid
-- $2 project_id uuid  the task must be of it; NULL: any
--
-- document: text, every column of a task. etag: text, its entity tag.
SELECT
    document,
    task_etag(document) AS etag
FROM (
    SELECT task_document(tasks) AS document
    FROM tasks
    WHERE
        task_id = $1::uuid
        AND created_at = created_at_of($1)
        AND ($2::uuid IS NULL OR project_id = $2)
    OFFSET 0
) AS found
