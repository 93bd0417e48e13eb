-- refuse_record: copies a record to what the service refused.
INSERT INTO refused (id, task_id, kind, body, made_at, tried, refused_at, problem)
SELECT id, task_id, kind, body, made_at, tried, :refused_at, :problem
FROM record
WHERE id = :id;
