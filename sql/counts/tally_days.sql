-- tally_days: how many tasks match a filter, by day; one row.
--
-- It counts the days from :first_day on, before :last_day if that is not NULL. These are values in
-- the plan, so that the planner opens only the partitions that are needed.
-- position: bigint, :position, or the size of the log if that is NULL.
-- days: text, a JSON object from the start of a day, in seconds since 1970, to how many tasks match
-- after the events before the position. Events from there on are left out, except if the filter has
-- an :outcome, which events do not tell: days that they changed have to be counted anew.
-- server: text, what the statement ran on.
WITH log AS MATERIALIZED (
    SELECT COALESCE(:position::bigint, task_log_size()) AS position
)

SELECT
    log.position,
    (
        SELECT COALESCE(json_object_agg(extract(EPOCH FROM day)::bigint, n), '{}')::text
        FROM (
            SELECT day, sum(n)::bigint AS n
            FROM (
                SELECT
                    -- Much faster than date_trunc. UTC has no day that is longer than others.
                    date_bin('1 day', created_at, '2000-01-01 00:00:00+00') AS day,
                    count(*) AS n
                FROM tasks
                WHERE
                    :filter
                    AND created_at >= :first_day::timestamptz
                    AND (:last_day::timestamptz IS NULL OR created_at < :last_day)
                GROUP BY day
                UNION ALL
                SELECT change.day, -change.n
                FROM
                    tally_task_changes(
                        log.position, :statuses, :services, :intents, :since, :until, :created_by,
                        :project_id
                    ) AS change
                WHERE
                    :outcome IS NULL
                    AND change.day >= :first_day
                    AND (:last_day IS NULL OR change.day < :last_day)
            ) AS counted
            GROUP BY day
        ) AS tallied
    ) AS days,
    :server AS server
FROM log
