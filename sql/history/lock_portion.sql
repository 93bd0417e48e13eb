-- lock_portion: the next tasks for import_tasks to import, some of them locked; one row.
--
-- $1 after_at timestamptz  the portion begins after this task,
-- $2 after_id uuid         in the order of created_at and task_id
-- $3 most     int          the size of the portion
--
-- tasks: bigint, the size of the portion. last_at, last_id: the last task; NULL if tasks is 0.
-- locked: uuid[], the open tasks that stay as they are until the transaction ends. A task that
-- another transaction is just changing is not waited for, and not locked. A terminal task never
-- changes. Imports take turns: each sees in its next statement what the one before has imported.
WITH turn AS MATERIALIZED (
    SELECT pg_advisory_xact_lock(hashtext('import_tasks'))
),

portion AS MATERIALIZED (
    SELECT tasks.created_at, tasks.task_id, tasks.status
    FROM turn
    CROSS JOIN
        LATERAL (
            SELECT created_at, task_id, status
            FROM tasks
            WHERE (created_at, task_id) > ($1::timestamptz, $2::uuid) AND created_at >= $1
            ORDER BY created_at, task_id
            LIMIT $3::int
        ) AS tasks
),

locked AS MATERIALIZED (
    SELECT tasks.task_id
    FROM portion
    INNER JOIN tasks USING (created_at, task_id)
    WHERE
        NOT is_terminal(portion.status)
        AND NOT EXISTS (
            SELECT FROM task_events
            WHERE task_events.task_id = portion.task_id
            OFFSET 0
        )
    FOR SHARE OF tasks SKIP LOCKED
)

SELECT
    count(*) AS tasks,
    (array_agg(created_at ORDER BY created_at DESC, task_id DESC))[1] AS last_at,
    (array_agg(task_id ORDER BY created_at DESC, task_id DESC))[1] AS last_id,
    ARRAY(SELECT task_id FROM locked) AS locked
FROM portion
