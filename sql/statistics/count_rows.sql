-- count_rows: how many tasks match a filter in each segment of time, by the tasks themselves.
--
-- It looks at the tasks between :read_since and :read_until, which are values in the plan, so that
-- the planner opens only the partitions that are needed. Segment n lies between :edges n and n + 1.
-- :by_intent: as in count_bars.
-- segment: int. status, intent: text. n: bigint.
SELECT
    width_bucket(created_at, :edges::timestamptz[]) AS segment,
    status::text AS status,
    CASE WHEN :by_intent::boolean THEN intent END AS intent,
    count(*) AS n
FROM tasks
WHERE :filter AND created_at >= :read_since::timestamptz AND created_at < :read_until::timestamptz
GROUP BY 1, 2, 3
