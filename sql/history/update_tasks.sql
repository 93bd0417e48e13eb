-- update_tasks: change several open tasks, each for another request.
--
-- The function of the same name describes the parameters and the columns.
-- position: text, as in position.sql.
SELECT task_id, document, etag, :own_position AS position
FROM
    update_tasks(
        changes => :changes::json,
        task_ids => :task_ids::uuid[],
        lock_wait => :lock_wait::text
    )
