-- What POST of an open task stores and two PATCHes change, in three transactions.
\set number random(1, :samples)
WITH inserted AS (
    INSERT INTO bare (task_id, created_at, request_text, created_by, services_touched)
    SELECT gen_random_uuid(), now(), request_text, created_by, services_touched
    FROM samples WHERE number = :number
    RETURNING task_id, created_at
), keyed AS (
    INSERT INTO bare_keys (task_id, created_at, digest)
    SELECT task_id, created_at, sha256(uuid_send(task_id)) FROM inserted
)
SELECT task_id, created_at FROM inserted \gset
UPDATE bare SET status = 'executing', approved_at = now()
WHERE created_at = :created_at AND task_id = :task_id;
UPDATE bare SET
    status = 'completed', completed_at = now(),
    outcome = (SELECT outcome FROM samples WHERE number = :number)
WHERE created_at = :created_at AND task_id = :task_id;
