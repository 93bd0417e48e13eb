-- list_tasks: one page of tasks, newest first, and how many match in all; always one row.
--
--  $1 statuses   task_status[]  any of them; NULL: any
--  $2 services   text[]         all of them are in services_touched; NULL: any
--  $3 intents    text[]         any of them; NULL: any
--  $4 days       int            created_at > clock - days * 24 h; NULL: unbounded
--  $5 since      timestamptz    created_at >= since; NULL: unbounded
--  $6 until      timestamptz    created_at < until; NULL: unbounded
--  $7 created_by text           NULL: any
--  $8 project_id uuid           NULL: any
--  $9 outcome    jsonb          contained in outcome; NULL: any
-- $10 clock      timestamptz    NULL: the database's clock, rounded down to a second
-- $11 after_at   timestamptz    created_at of the last task seen; NULL: first page
-- $12 after_id   uuid           task_id of the last task seen
-- $13 limit      int            0: only the total is wanted
-- $14 offset     bigint         matching tasks to skip
-- $15 total      bigint         as known already; NULL: count
--
-- tasks: text, a JSON array. total: of all that match $1 to $9. clock: as used.
-- more: whether tasks follow this page. last_at, last_id: of the last task of the page,
-- NULL where it is empty. Page and total are of one snapshot.
-- matching is NOT MATERIALIZED: the page and the count are planned each for themselves, from one
-- text of the filter. One value of $1 or $3 is an equality, which keeps the order of the index.
WITH matching AS NOT MATERIALIZED (
    SELECT
        task_id, status, request_text, services_touched, outcome, created_at, completed_at,
        error_message
    FROM tasks
    WHERE
        (
            $1::task_status[] IS NULL
            OR (cardinality($1) = 1 AND status = ($1)[1])
            OR (cardinality($1) > 1 AND status = ANY($1))
        )
        AND ($2::text[] IS NULL OR services_touched @> $2)
        AND (
            $3::text[] IS NULL
            OR (cardinality($3) = 1 AND intent = ($3)[1])
            OR (cardinality($3) > 1 AND intent = ANY($3))
        )
        AND (
            $4::int IS NULL
            OR created_at
            > COALESCE($10::timestamptz, date_trunc('second', now())) - $4 * interval '24 hours'
        )
        AND ($5::timestamptz IS NULL OR created_at >= $5)
        AND ($6::timestamptz IS NULL OR created_at < $6)
        AND ($7::text IS NULL OR created_by = $7)
        AND ($8::uuid IS NULL OR project_id = $8)
        AND ($9::jsonb IS NULL OR outcome @> $9)
),

-- One row more than the page, to know whether it is the last. The second condition follows from
-- the first; partitions are chosen by it.
fetched AS (
    SELECT *
    FROM matching
    WHERE
        $11::timestamptz IS NULL
        OR ((created_at, task_id) < ($11, $12::uuid) AND created_at <= $11)
    ORDER BY created_at DESC, task_id DESC
    LIMIT $13::int + ($13 > 0)::int OFFSET $14::bigint
),

page AS (
    SELECT
        *,
        row_number() OVER (ORDER BY created_at DESC, task_id DESC) AS position,
        row_to_json(
            (
                SELECT shown
                FROM (
                    SELECT
                        task_id, status, request_text, services_touched, outcome,
                        rfc3339(created_at) AS created_at,
                        rfc3339(completed_at) AS completed_at,
                        error_message
                ) AS shown
            )
        )::text AS document
    FROM fetched
)

SELECT
    '['
    || COALESCE(string_agg(document, ',' ORDER BY position) FILTER (WHERE position <= $13), '')
    || ']' AS tasks,
    COALESCE($15::bigint, (SELECT count(*) FROM matching)) AS total,
    COALESCE($10, date_trunc('second', now())) AS clock,
    count(*) > $13 AS more,
    (array_agg(created_at ORDER BY position DESC) FILTER (WHERE position <= $13))[1] AS last_at,
    (array_agg(task_id ORDER BY position DESC) FILTER (WHERE position <= $13))[1] AS last_id
FROM page
