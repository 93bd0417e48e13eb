-- list_refused: returns what the service refused, oldest first.
SELECT id, task_id, kind, body, made_at, tried, refused_at, problem
FROM refused
ORDER BY id;
