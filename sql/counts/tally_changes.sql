-- tally_changes: how events change the number of tasks that match a filter, by day; one row.
--
-- It reads the events of the log from :position on and those of the queue. A filter by outcome is
-- left out; the days are then those that may have changed.
-- position: bigint, the size of the log. logged, queued: text, a JSON object from the start of a
-- day, in seconds since 1970, to the change. logged is NULL if there are more than :most events.
-- server, snapshot: text, what the statement ran on and saw.
WITH log AS MATERIALIZED (
    SELECT task_log_size() AS size
),

changes AS MATERIALIZED (
    SELECT extract(EPOCH FROM day)::bigint AS day, is_queued, n
    FROM
        tally_task_changes(
            :position::bigint, :statuses::task_status[], :services::text[], :intents::text[],
            :since::timestamptz, :until::timestamptz, :created_by::text, :project_id::uuid
        )
    WHERE (SELECT size FROM log) - :position <= :most::bigint
)

SELECT
    log.size AS position,
    CASE
        WHEN log.size - :position <= :most
            THEN (SELECT COALESCE(json_object_agg(day, n), '{}') FROM changes WHERE NOT is_queued)
    END::text AS logged,
    (SELECT COALESCE(json_object_agg(day, n), '{}') FROM changes WHERE is_queued)::text AS queued,
    :server AS server,
    :snapshot AS snapshot
FROM log
