-- update_task: move an open task on; the task as it is now, as a JSON object.
--
-- $1 task_id    uuid
-- $2 change     jsonb  an object whose members are named like columns; null: set to NULL;
--                      absent: left as it is
-- $3 project_id uuid   the task must be of it; NULL: any
--
-- document: text, every column of a task; no row where the id is not recorded.
-- What may change, and when, the trigger guard_change decides.
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
    AND created_at = (SELECT task_keys.created_at FROM task_keys WHERE task_keys.task_id = $1)
    AND ($3::uuid IS NULL OR project_id = $3)
RETURNING task_document(tasks) AS document
