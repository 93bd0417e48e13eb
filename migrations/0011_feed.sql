-- What the feed of changes reads of the event log.
--
-- depends: 0009_statistics

DO $$ BEGIN
    PERFORM set_config('search_path', quote_ident(current_schema()) || ', pg_temp', TRUE);
END $$;

-- The changes from a position of the log on that match a filter; `sql/history/read_feed.sql`
-- describes it.
--
-- An event stores the values that it replaced. What it replaced them by is in the next event of the
-- task that replaced the same member, or else in the task. The digest of the event tells whether
-- the task still is as the event left it, so that most events need no other event.
--
-- The function keeps the plans of its statements for the session: to plan them takes longer than to
-- run them, since the log and the tasks are partitioned. Its result is of the one snapshot of the
-- statement that calls it, as it is STABLE.
CREATE FUNCTION read_task_feed(
    first bigint,
    most integer,
    most_scanned integer,
    max_bytes bigint,
    any_status task_status[],
    all_services text[],
    any_intent text[],
    person text,
    project uuid,
    in_outcome jsonb,
    OUT log_size bigint,
    OUT positions bigint[],
    OUT changes text[],
    OUT next_position bigint,
    OUT behind_seconds double precision
)
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    entry record;
    bytes bigint := 0;
BEGIN
    log_size := task_log_size();
    positions := '{}';
    changes := '{}';
    next_position := least(first + most_scanned, log_size);
    behind_seconds := 0;
    IF first >= log_size THEN
        RETURN;
    END IF;
    FOR entry IN
        WITH page AS MATERIALIZED (
            SELECT position, event_id, at, task_id, created_at, status, actor, salt, content, was
            FROM (
                SELECT
                    event.*,
                    CASE
                        WHEN in_outcome IS NOT NULL
                            THEN (
                                SELECT outcome
                                FROM tasks
                                WHERE tasks.task_id = event.task_id
                                    AND tasks.created_at = event.created_at
                            )
                    END AS outcome
                FROM task_events AS event
                WHERE position >= first AND position < next_position
            ) AS scanned
            WHERE (any_status IS NULL OR status = ANY(any_status))
                AND (all_services IS NULL OR services_touched @> all_services)
                AND (any_intent IS NULL OR intent = ANY(any_intent))
                AND (person IS NULL OR created_by = person)
                AND (project IS NULL OR project_id = project)
                AND (in_outcome IS NULL OR outcome @> in_outcome)
            ORDER BY position
            LIMIT most
        ),

        superseded AS MATERIALIZED (
            SELECT page.task_id, min(page.event_id) AS event_id
            FROM page
            INNER JOIN tasks USING (task_id, created_at)
            WHERE page.was <> '{}'
                AND page.content <> task_content(page.salt, task_document(tasks))
            GROUP BY page.task_id
        ),

        replaced AS (
            SELECT
                event.event_id,
                member,
                lead(event.was) OVER (
                    PARTITION BY event.task_id, member ORDER BY event.event_id
                ) AS next_was
            FROM superseded
            INNER JOIN task_history AS event USING (task_id)
            CROSS JOIN LATERAL jsonb_object_keys(event.was) AS member
            WHERE event.event_id >= superseded.event_id
        ),

        later AS MATERIALIZED (
            SELECT
                event_id,
                json_object_agg(
                    member,
                    task_document(jsonb_populate_record(NULL::tasks, next_was))::json -> member
                ) AS members
            FROM replaced
            INNER JOIN page USING (event_id)
            WHERE next_was IS NOT NULL
            GROUP BY event_id
        )

        SELECT
            page.position,
            row_to_json(change)::text AS document
        FROM page
        INNER JOIN tasks USING (task_id, created_at)
        LEFT JOIN later USING (event_id)
        CROSS JOIN
            LATERAL (
                SELECT
                    page.position AS n,
                    page.task_id,
                    page.status,
                    rfc3339(page.at) AS changed_at,
                    page.actor AS by,
                    CASE
                        WHEN page.was IS NOT NULL
                            THEN (
                                SELECT
                                    COALESCE(
                                        json_object_agg(
                                            now.member,
                                            COALESCE(later.members -> now.member, now.value)
                                            ORDER BY now.place
                                        ),
                                        '{}'
                                    )
                                FROM json_each(task_document(tasks)::json) WITH ORDINALITY
                                    AS now (member, value, place)
                                WHERE page.was ? now.member
                            )
                    END AS changed,
                    listed_task(tasks)::json AS task
                OFFSET 0
            ) AS change
        ORDER BY page.position
    LOOP
        bytes := bytes + octet_length(entry.document);
        IF bytes > max_bytes AND changes <> '{}' THEN
            next_position := entry.position;
            EXIT;
        END IF;
        positions := positions || entry.position;
        changes := changes || entry.document;
    END LOOP;
    IF cardinality(positions) = most THEN
        next_position := entry.position + 1;
    END IF;
    IF next_position < log_size THEN
        behind_seconds := greatest(
            (
                SELECT extract(EPOCH FROM clock_timestamp() - at)
                FROM task_events
                WHERE position = next_position
            ),
            0
        );
    END IF;
END
$$;
