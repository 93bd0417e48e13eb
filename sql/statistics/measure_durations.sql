-- measure_durations: how long the tasks took that match a filter, in seconds.
--
-- A row for all tasks, where is_all is true; with :by_intent or :edges also one for each intent or
-- bar. matching: bigint, how many tasks there are. tasks: bigint, how many of them are completed or
-- failed, and have a time of completion. negative: bigint, how many of these were completed before
-- they were created. percentiles: float8[], of 50, 90, 95 and 99 %, and the longest; NULL if there
-- are no tasks. intent: text. bar: int.
WITH measured AS MATERIALIZED (
    SELECT
        CASE WHEN :by_intent::boolean THEN intent END AS intent,
        CASE
            WHEN :edges::timestamptz[] IS NOT NULL THEN width_bucket(created_at, :edges)
        END AS bar,
        CASE
            WHEN status IN ('completed', 'failed')
                THEN date_part('epoch', completed_at - created_at)
        END AS seconds
    FROM tasks
    WHERE :filter
)

SELECT
    grouping(intent, bar) = 3 AS is_all,
    intent,
    bar,
    count(seconds) AS tasks,
    count(*) AS matching,
    count(*) FILTER (WHERE seconds < 0) AS negative,
    percentile_disc(ARRAY[0.5, 0.9, 0.95, 0.99, 1]) WITHIN GROUP (ORDER BY seconds) AS percentiles
FROM measured
GROUP BY GROUPING SETS ((), (intent, bar))
