-- next_new: returns the oldest new tasks.
SELECT id, task_id, body
FROM record
WHERE kind = 'new'
ORDER BY id
LIMIT :count;
