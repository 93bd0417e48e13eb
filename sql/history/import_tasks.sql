-- import_tasks: add an event for each task of a portion that has none; one row.
--
-- $1 after_at timestamptz  the portion is after this task,
-- $2 after_id uuid         in the order of created_at and task_id
-- $3 last_at  timestamptz  and ends with this one
-- $4 last_id  uuid
-- $5 locked   uuid[]       the open tasks that the transaction has locked, from lock_portion
--
-- imported: bigint, how many got an event. skipped: bigint, how many have none yet, because another
-- transaction was changing them.
-- Whatever the planner believes, the log is searched by its index, and the queue is read once.
WITH missing AS MATERIALIZED (
    SELECT task_id, created_at, is_terminal(status) OR task_id = ANY($5::uuid[]) AS is_fixed
    FROM tasks
    WHERE
        (created_at, task_id) > ($1::timestamptz, $2::uuid)
        AND (created_at, task_id) <= ($3::timestamptz, $4::uuid)
        AND created_at BETWEEN $1 AND $3
        AND NOT EXISTS (
            SELECT FROM task_events
            WHERE task_events.task_id = tasks.task_id
            OFFSET 0
        )
    EXCEPT
    SELECT task_id, created_at, is_fixed
    FROM queued_task_events()
    CROSS JOIN (VALUES (TRUE), (FALSE)) AS either (is_fixed)
),

imported AS (
    INSERT INTO task_event_queue (
        kind, task_id, created_at, project_id, created_by, status, services_touched, intent,
        salt, content
    )
    SELECT
        'imported', task_id, created_at, project_id, created_by, status, services_touched, intent,
        salt, task_content(salt, document)
    FROM (
        SELECT tasks.*, gen_random_uuid() AS salt, task_document(tasks) AS document
        FROM missing
        INNER JOIN tasks USING (created_at, task_id)
        WHERE is_fixed
        ORDER BY created_at, task_id
        OFFSET 0
    ) AS salted
    RETURNING 1
)

SELECT
    (SELECT count(*) FROM imported) AS imported,
    (SELECT count(*) FROM missing WHERE NOT is_fixed) AS skipped
