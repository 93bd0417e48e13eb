-- find_missing_partitions: the times of known tasks that no partition holds, the oldest first.
--
-- since: timestamptz, the end of the partition before; until: the start of the one after; either is
-- NULL where there is none. tasks: bigint, how many ids are known of tasks created in between.
WITH partitions AS MATERIALIZED (
    SELECT since, until FROM task_partitions
),

days AS MATERIALIZED (
    SELECT bucket_of('day', created_at) AS day, count(*) AS tasks
    FROM task_keys
    GROUP BY day
)

SELECT gap.since, gap.until, sum(days.tasks)::bigint AS tasks
FROM days
CROSS JOIN
    LATERAL (
        SELECT
            max(partitions.until) FILTER (WHERE partitions.until <= days.day) AS since,
            min(partitions.since) FILTER (WHERE partitions.since > days.day) AS until,
            bool_or(partitions.since <= days.day AND partitions.until > days.day) AS is_held
        FROM partitions
    ) AS gap
WHERE gap.is_held IS NOT TRUE
GROUP BY gap.since, gap.until
ORDER BY gap.since NULLS FIRST
