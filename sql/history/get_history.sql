-- get_history: one page of a task's events, oldest first; one row, or none if there is no task.
--
-- The task must be of :project_id, if that is not NULL. The page begins after the event :after.
-- events: text, a JSON array. shown: how many events it has: at most :limit, and after the first
-- one only as long as the replaced values fit into :max_bytes twice. last_id: the event_id of the
-- last event shown. has_more: boolean, whether events follow the page.
-- An event stores the values that it replaced. What it replaced them by is in the next event that
-- replaced the same member, or else in the task. All is read in one snapshot.
WITH task AS MATERIALIZED (
    SELECT task_document(tasks)::json AS document
    FROM tasks
    WHERE
        task_id = :task_id::uuid
        AND created_at = created_at_of(:task_id)
        AND (:project_id::uuid IS NULL OR project_id = :project_id)
),

event AS MATERIALIZED (
    SELECT *
    FROM history_of_task(:task_id, :after::bigint)
    WHERE EXISTS (SELECT FROM task)
),

-- task_document writes the replaced values as clients get them. Rows are made one by one, as far as
-- they are read.
fetched AS MATERIALIZED (
    SELECT *, task_document(jsonb_populate_record(NULL::tasks, was))::json AS replaced
    FROM (
        SELECT *
        FROM event
        ORDER BY event_id
        LIMIT :limit::int
    ) AS following
),

-- One row for each KiB that an event has begun, the first with part 0. LIMIT ends the reading at
-- the first row that does not fit into the page.
parts AS (
    SELECT
        generate_series(
            0, least(2 * octet_length(replaced::text), :max_bytes::bigint) / 1024
        ) AS part
    FROM fetched
    LIMIT :max_bytes / 1024 + 1
),

-- The event of the last row may have more rows.
shown AS MATERIALIZED (
    SELECT *
    FROM fetched
    LIMIT (
        SELECT
            greatest(count(*) FILTER (WHERE part = 0) - (count(*) > :max_bytes / 1024)::int, 1)
        FROM parts
    )
),

change AS (
    SELECT
        shown.event_id, value.member, value.place, value.before,
        lead(value.before) OVER (PARTITION BY value.member ORDER BY shown.event_id) AS next_before
    FROM shown
    CROSS JOIN LATERAL json_each(shown.replaced) WITH ORDINALITY AS value (member, before, place)
    WHERE shown.was ? value.member
),

-- For each member, the first event after the page that replaced it.
later AS MATERIALIZED (
    SELECT
        member,
        task_document(jsonb_populate_record(NULL::tasks, was))::json -> member AS before
    FROM (
        SELECT DISTINCT ON (member) member, was
        FROM event
        CROSS JOIN LATERAL jsonb_object_keys(was) AS member
        WHERE event_id > (SELECT max(shown.event_id) FROM shown)
        ORDER BY member ASC, event_id ASC
    ) AS first_of_each
),

changes AS (
    SELECT
        event_id,
        json_object_agg(
            member,
            json_build_object(
                'from', change.before,
                'to', COALESCE(next_before, later.before, task.document -> member)
            )
            ORDER BY place
        ) AS changed
    FROM change
    CROSS JOIN task
    LEFT JOIN later USING (member)
    GROUP BY event_id
),

page AS (
    SELECT
        string_agg(row_to_json(entry)::text, ',' ORDER BY event_id) AS events,
        count(*) AS shown,
        max(event_id) AS last_id
    FROM shown
    LEFT JOIN changes USING (event_id)
    CROSS JOIN
        LATERAL (
            SELECT
                shown.position,
                rfc3339(shown.at) AS at,
                shown.kind,
                shown.status,
                shown.actor,
                shown.db_role AS role,
                shown.request_id,
                COALESCE(changes.changed, '{}') AS changed,
                shown.salt,
                encode(shown.content, 'hex') AS content
        ) AS entry
)

SELECT
    '[' || COALESCE(page.events, '') || ']' AS events,
    page.shown,
    page.last_id,
    page.shown < (SELECT count(*) FROM event) AS has_more
FROM task
CROSS JOIN page
