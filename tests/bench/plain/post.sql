-- What POST of one task stores: the task and its key, in one transaction.
\set number random(1, :samples)
WITH inserted AS (
    INSERT INTO bare (
        task_id, created_at, project_id, request_text, created_by, status, services_touched,
        outcome, estimated_resources, actual_resources, external_ai_used, error_message, suggestions
    )
    SELECT
        gen_random_uuid(), now(), project_id, request_text, created_by, status, services_touched,
        outcome, estimated_resources, actual_resources, external_ai_used, error_message, suggestions
    FROM samples WHERE number = :number
    RETURNING task_id, created_at
)
INSERT INTO bare_keys (task_id, created_at, digest)
SELECT task_id, created_at, sha256(uuid_send(task_id)) FROM inserted;
