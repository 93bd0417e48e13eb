-- find_untried_new: returns the new task that a change can still be merged into. There is none if
-- another record of the task waits: an earlier change, because the changes would be in another
-- order, or the same new task again, because the service compares their contents.
SELECT id, body
FROM record
WHERE
    task_id = :task_id
    AND kind = 'new'
    AND sent_once = 0
    AND NOT EXISTS (
        SELECT 1
        FROM record AS other
        WHERE other.task_id = :task_id AND other.id <> record.id
    );
