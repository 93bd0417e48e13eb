-- next_changes: returns the oldest changes after :after whose task has no older record.
SELECT id, task_id, body
FROM record
WHERE
    kind = 'change'
    AND id > :after
    AND NOT EXISTS (
        SELECT 1
        FROM record AS older
        WHERE older.task_id = record.task_id AND older.id < record.id
    )
ORDER BY id
LIMIT :count;
