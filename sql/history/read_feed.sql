-- read_feed: the changes from a position of the log on that match a filter; one row.
--
-- It looks at no more than :most_scanned events from the position :first on, and returns at most
-- :most of them, and after the first one only as many as fit into :max_bytes.
-- :statuses are compared with the status after the change, :services, :intents, :created_by and
-- :project_id with those that the task had after it, and :outcome with the one that it has now.
-- log_size: how many events have a position: 0 to log_size - 1. If it is less than :first, that is
-- a position of another log, or what a standby has not replayed yet. is_standby: boolean.
-- positions: bigint[]. changes: text[], for each of them a JSON object; docs/feed.md describes it.
-- next_position: where to go on. behind_seconds: float8, the age of the event at next_position; 0
-- if there is none yet.
SELECT
    log_size,
    pg_is_in_recovery() AS is_standby,
    positions,
    changes,
    next_position,
    behind_seconds
FROM
    read_task_feed(
        :first::bigint,
        :most::int,
        :most_scanned::int,
        :max_bytes::bigint,
        :statuses::task_status[],
        :services::text[],
        :intents::text[],
        :created_by::text,
        :project_id::uuid,
        :outcome::jsonb
    )
