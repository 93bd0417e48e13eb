-- update_task: change an open task if a condition holds; no row where the id is not recorded.
--
-- :change is a JSON object with members named like columns; null: set to NULL; absent: leave as it
-- is. The task must be of :project_id and must have one of the entity tags :match, and none of
-- :none_match. '*' is any tag; NULL: no condition. :actor and :request_id are for the event log.
-- :lock_wait limits how long to wait for other transactions.
--
-- document: every column of the task as it is now. etag: its entity tag. is_done: the task is what
-- the change says; nothing is written if it was so before. is_matched: the condition holds. If it
-- holds and is_done is false, another transaction changed the task at the same time: the statement
-- has to run again.
WITH author AS MATERIALIZED (
    -- The triggers of the event log read these settings at the end of the statement.
    SELECT
        set_config('audit.actor', COALESCE(:actor::text, ''), TRUE) AS actor,
        set_config('audit.request_id', COALESCE(:request_id::text, ''), TRUE) AS request_id,
        CASE
            WHEN :lock_wait::text IS NOT NULL THEN set_config('lock_timeout', :lock_wait, TRUE)
        END AS lock_wait
),

changed AS (
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
        FROM jsonb_populate_record(tasks, :change::jsonb) AS changed
    )
    FROM author
    WHERE
        task_id = :task_id::uuid
        AND created_at = created_at_of(:task_id)
        AND (:project_id::uuid IS NULL OR project_id = :project_id)
        AND (
            (:match::text[] IS NULL AND :none_match::text[] IS NULL)
            OR task_matches(tasks, :match, :none_match)
        )
        AND NOT task_is_as(tasks, :change)
    RETURNING task_document(tasks) AS document
),

unchanged AS (
    SELECT
        task_document(tasks) AS document,
        task_is_as(tasks, :change) AS is_done,
        task_matches(tasks, :match, :none_match) AS is_matched
    FROM tasks
    WHERE
        NOT EXISTS (SELECT FROM changed)
        AND task_id = :task_id
        AND created_at = created_at_of(:task_id)
        AND (:project_id IS NULL OR project_id = :project_id)
)

SELECT document, task_etag(document) AS etag, TRUE AS is_done, TRUE AS is_matched
FROM changed
UNION ALL
SELECT document, task_etag(document) AS etag, is_done, is_matched
FROM unchanged
