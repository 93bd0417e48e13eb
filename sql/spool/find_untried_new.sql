-- find_untried_new: returns the new task that a change can still be merged into. There is none if
-- an earlier change waits, because the changes would be in another order.
SELECT id, body
FROM record
WHERE
    task_id = :task_id
    AND kind = 'new'
    AND sent_once = 0
    AND NOT EXISTS (
        SELECT 1
        FROM record AS change
        WHERE change.task_id = :task_id AND change.kind = 'change'
    );
