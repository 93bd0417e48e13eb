-- read_records: returns records as they are now.
SELECT id, task_id, body
FROM record
WHERE id IN (SELECT value FROM json_each(:ids))
ORDER BY id;
