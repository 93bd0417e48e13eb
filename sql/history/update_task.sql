-- update_task: change an open task if a condition holds; no row where the id is not recorded.
--
-- $1 task_id    uuid
-- $2 change     jsonb   members are named like columns; null: set to NULL; absent: leave as it is
-- $3 project_id uuid    the task must be of it; NULL: any
-- $4 match      text[]  the task must have one of these entity tags, '*' is any; NULL: no condition
-- $5 none_match text[]  the task must have none of these, '*' is any; NULL: no condition
-- document: text, every column of the task as it is now. etag: text, its entity tag.
-- is_done: the task is what the change says; nothing is written if it was so before.
-- is_matched: the condition holds. If it holds and is_done is false, another transaction changed
-- the task at the same time: the statement has to run again.
WITH changed AS (
    -- The trigger guard_change decides what may change, and when. An UPDATE that waited for another
    -- one evaluates its WHERE again, for the row as the other one left it.
    UPDATE tasks
    SET (
        status, approved_at, completed_at, services_touched, outcome, estimated_resources,
        actual_resources, external_ai_used, error_message, suggestions
    ) = (
        SELECT
            changed.status, changed.approved_at, changed.completed_at, changed.services_touched,
            changed.outcome, changed.estimated_resources, changed.actual_resources,
            changed.external_ai_used, changed.error_message, changed.suggestions
        FROM jsonb_populate_record(tasks, $2::jsonb) AS changed
    )
    WHERE
        task_id = $1::uuid
        AND created_at = created_at_of($1)
        AND ($3::uuid IS NULL OR project_id = $3)
        AND (($4::text[] IS NULL AND $5::text[] IS NULL) OR task_matches(tasks, $4, $5))
        AND NOT task_is_as(tasks, $2)
    RETURNING task_document(tasks) AS document
),

unchanged AS (
    SELECT
        task_document(tasks) AS document,
        task_is_as(tasks, $2) AS is_done,
        task_matches(tasks, $4, $5) AS is_matched
    FROM tasks
    WHERE
        NOT EXISTS (SELECT FROM changed)
        AND task_id = $1
        AND created_at = created_at_of($1)
        AND ($3 IS NULL OR project_id = $3)
)

SELECT document, task_etag(document) AS etag, TRUE AS is_done, TRUE AS is_matched
FROM changed
UNION ALL
SELECT document, task_etag(document) AS etag, is_done, is_matched
FROM unchanged
