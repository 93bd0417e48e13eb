-- list_tasks: one page of tasks, newest first, and how many match in all; always one row.
--
--  $1 statuses   task_status[]  any of them; NULL: any
--  $2 services   text[]         all of them are in services_touched; NULL: any
--  $3 intents    text[]         any of them; NULL: any
--  $4 since      timestamptz    created_at >= since; NULL: unbounded
--  $5 until      timestamptz    created_at < until; NULL: unbounded
--  $6 created_by text           NULL: any
--  $7 project_id uuid           NULL: any
--  $8 outcome    jsonb          contained in outcome; NULL: any
--  $9 after_at   timestamptz    created_at of the last task seen; NULL: first page
-- $10 after_id   uuid           task_id of the last task seen
-- $11 limit      int            0: only the total is wanted
-- $12 offset     bigint         matching tasks to skip
-- $13 total      bigint         as known already; NULL: count
-- $14 counted    text           the service whose counts give the total, '': all tasks;
--                               NULL: the counts do not know the filter
-- $15 since_edge timestamptz    count_edge of since; NULL: since is
-- $16 until_edge timestamptz    count_bucket of until; NULL: until is
-- $17 page_since timestamptz    the page is sought at or after it; NULL: unbounded
-- $18 page_until timestamptz    the page is sought before it; NULL: unbounded
-- $19 is_sparse  boolean        seek the page by reading all that match between the two
-- $20 tallied    bigint         the fold of an earlier tally; NULL: there is none
-- $21 edge_day   timestamptz    a day of it to tally anew in any case; NULL: none
-- $22 tallied_to timestamptz    the first day of it; NULL: there is none
-- $23 tally_to   timestamptz    go on with the days before that, to this one; NULL: no tally
-- $24 max_bytes  bigint         the documents of the page together, each rounded up to 1 KiB
-- $25 fresh_since timestamptz   of days that changed, tally those at or after it and
-- $26 fresh_until timestamptz   before this; literals, so that no other partition is opened
--
-- tasks: text, a JSON array. total: of all that match $1 to $8; NULL where it is for the caller to
-- sum up the tally, or where $15 or $16 are no edges. skipped: how many of them are at or after
-- page_until; more than offset: page_until does not fit. shown: tasks of the page, at most limit,
-- and no more than fit into max_bytes; 0 where the first one alone does not. fetched: shown, or
-- more if tasks follow the page.
-- last_at, last_id: of the last task of the page, NULL where it is empty.
-- tally: text, a JSON object, from the start of a day, in seconds since 1970, to the tasks of it
-- that match: of days between $23 and $22, and of later ones that changed since $20. fold: bigint,
-- what the next tally may build on, as long as server is the same: text, its start and where its
-- last recovery ended. All three are NULL where $23 is.
-- All is of one snapshot. $14 to $19 are places to look, from locate_page; literals, so that the
-- planner touches only the partitions between them.
-- matching is NOT MATERIALIZED: every use is planned for itself, from one text of the filter. One
-- value of $1 or $3 is an equality, which keeps the order of the index.
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
        AND ($4::timestamptz IS NULL OR created_at >= $4)
        AND ($5::timestamptz IS NULL OR created_at < $5)
        AND ($6::text IS NULL OR created_by = $6)
        AND ($7::uuid IS NULL OR project_id = $7)
        AND ($8::jsonb IS NULL OR outcome @> $8)
),

-- What is counted from the edge on, and yet not before until.
later AS MATERIALIZED (
    SELECT
        CASE
            WHEN $16::timestamptz IS NULL THEN 0
            ELSE
                count_tasks_from($14, $1, $3, $16)
                - (SELECT count(*) FROM matching WHERE created_at >= $16)
        END AS n
),

counts AS MATERIALIZED (
    SELECT
        CASE
            WHEN $13::bigint IS NOT NULL THEN $13
            WHEN $14::text IS NULL THEN NULL
            ELSE
                count_tasks_from($14, $1, $3, $15::timestamptz)
                + CASE
                    WHEN $15 IS NULL THEN 0
                    ELSE (SELECT count(*) FROM matching WHERE created_at < $15)
                END
                - (SELECT later.n FROM later)
        END AS total,
        CASE
            WHEN $18::timestamptz IS NULL OR $14 IS NULL THEN 0
            ELSE count_tasks_from($14, $1, $3, $18) - (SELECT later.n FROM later)
        END AS skipped
),

-- One task more than the page, to know whether it is the last. An order that no index has keeps the
-- planner from walking the newest tasks in the hope of finding some that match soon. The second
-- condition of a cursor follows from the first; partitions are chosen by it.
fetched AS (
    SELECT *
    FROM matching
    WHERE
        ($17::timestamptz IS NULL OR created_at >= $17)
        AND ($18 IS NULL OR created_at < $18)
        AND (
            $9::timestamptz IS NULL
            OR ((created_at, task_id) < ($9, $10::uuid) AND created_at <= $9)
        )
    ORDER BY
        CASE WHEN $19::boolean THEN created_at + INTERVAL '0' ELSE created_at END DESC,
        task_id DESC
    LIMIT $11::int + ($11 > 0)::int OFFSET (
        SELECT greatest($12::bigint - counts.skipped, 0)
        FROM counts
    )
),

-- The rows come in their order, and stay in it. A document becomes one row for each KiB that it has
-- begun, the first with part 0. LIMIT ends the reading, and with it the building of documents, at
-- the first row that does not fit: then the last document is not shown.
-- OFFSET 0 keeps the planner from building each document twice.
parts AS (
    SELECT
        fetched.created_at,
        fetched.task_id,
        built.document,
        generate_series(0, least(octet_length(built.document), $24::bigint) / 1024) AS part
    FROM fetched
    CROSS JOIN
        LATERAL (
            SELECT row_to_json(shown)::text AS document
            FROM (
                SELECT
                    fetched.task_id, fetched.status, fetched.request_text, fetched.services_touched,
                    fetched.outcome,
                    rfc3339(fetched.created_at) AS created_at,
                    rfc3339(fetched.completed_at) AS completed_at,
                    fetched.error_message
            ) AS shown
            OFFSET 0
        ) AS built
    LIMIT $24 / 1024 + 1
)

SELECT
    '[' || COALESCE(
        array_to_string(
            (array_agg(document) FILTER (WHERE part = 0))[
                1:least(count(*) FILTER (WHERE part = 0) - (count(*) > $24 / 1024)::int, $11)
            ],
            ','
        ), ''
    ) || ']' AS tasks,
    (SELECT total FROM counts) AS total,
    (SELECT skipped FROM counts) AS skipped,
    least(count(*) FILTER (WHERE part = 0) - (count(*) > $24 / 1024)::int, $11) AS shown,
    count(*) FILTER (WHERE part = 0) AS fetched,
    (array_agg(created_at) FILTER (WHERE part = 0))[
        least(count(*) FILTER (WHERE part = 0) - (count(*) > $24 / 1024)::int, $11)
    ] AS last_at,
    (array_agg(task_id) FILTER (WHERE part = 0))[
        least(count(*) FILTER (WHERE part = 0) - (count(*) > $24 / 1024)::int, $11)
    ] AS last_id,
    CASE
        WHEN $23::timestamptz IS NOT NULL THEN (
            SELECT COALESCE(json_object_agg(extract(EPOCH FROM day)::bigint, n), '{}')::text
            FROM (
                SELECT bucket_of('day', created_at) AS day, count(*) AS n
                FROM matching
                WHERE
                    created_at >= $23
                    AND ($22::timestamptz IS NULL OR created_at < $22)
                GROUP BY day
                UNION ALL
                SELECT
                    day,
                    (
                        SELECT count(*)
                        FROM matching
                        WHERE
                            created_at >= day
                            AND created_at < bucket_after('day', day)
                            AND created_at >= $25::timestamptz
                            AND created_at < $26::timestamptz
                    )
                FROM (
                    SELECT day FROM task_day_changes WHERE fold > $20::bigint
                    UNION
                    SELECT bucket_of('day', created_at) FROM task_count_deltas
                    UNION
                    SELECT $21::timestamptz WHERE $21 IS NOT NULL
                ) AS changed
                WHERE day >= $22
            ) AS tallied
        )
    END AS tally,
    CASE
        WHEN $23 IS NOT NULL
            THEN (SELECT COALESCE(max(fold), 0) FROM task_day_changes)
    END AS fold,
    CASE
        WHEN $23 IS NOT NULL
            THEN concat_ws(
                ' ', pg_postmaster_start_time(),
                CASE WHEN NOT pg_is_in_recovery() THEN pg_last_wal_replay_lsn() END,
                current_database(), 'tasks'::regclass::oid
            )
    END AS server
FROM parts
