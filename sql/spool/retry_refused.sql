-- retry_refused: puts records that were refused back to their places.
INSERT INTO record (id, task_id, kind, body, made_at, tried, sent_once)
SELECT id, task_id, kind, body, made_at, 0, 1
FROM refused
WHERE task_id IN (SELECT value FROM json_each(:task_ids));
