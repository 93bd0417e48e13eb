-- tally_days: how many tasks match a filter, by day; one row.
--
-- It tallies the days from :tally_since to :known_since and, of the later ones, :cut_day and those
-- that changed after :known_fold. Without a tally that is known, :known_since is NULL.
-- Of the days that changed it counts only what is between :fresh_since and :fresh_until. These are
-- values in the plan, so that the planner opens only the partitions that are needed.
-- days: text, a JSON object from the start of a day, in seconds since 1970, to how many match.
-- fold: bigint, the last fold. server: text, its start, the end of its last recovery and the table;
-- folds of two servers cannot be compared. snapshot: text, what the statement saw.
SELECT
    (
        SELECT COALESCE(json_object_agg(extract(EPOCH FROM day)::bigint, n), '{}')::text
        FROM (
            SELECT bucket_of('day', created_at) AS day, count(*) AS n
            FROM tasks
            WHERE
                :filter
                AND created_at >= :tally_since::timestamptz
                AND (:known_since::timestamptz IS NULL OR created_at < :known_since)
            GROUP BY day
            UNION ALL
            SELECT
                day,
                (
                    SELECT count(*)
                    FROM tasks
                    WHERE
                        :filter
                        AND created_at >= day
                        AND created_at < bucket_after('day', day)
                        AND created_at >= :fresh_since::timestamptz
                        AND created_at < :fresh_until::timestamptz
                )
            FROM (
                SELECT day FROM days_changed_since(:known_fold::bigint)
                UNION
                SELECT :cut_day::timestamptz WHERE :cut_day IS NOT NULL
            ) AS changed
            WHERE day >= :known_since
        ) AS tallied
    ) AS days,
    (SELECT COALESCE(max(fold), 0) FROM task_day_changes) AS fold,
    concat_ws(
        ' ', pg_postmaster_start_time(),
        CASE WHEN NOT pg_is_in_recovery() THEN pg_last_wal_replay_lsn() END,
        current_database(), 'tasks'::regclass::oid
    ) AS server,
    :snapshot AS snapshot
