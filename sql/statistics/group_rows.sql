-- group_rows: how many tasks match a filter, by :member, the most first; at most :most values.
--
-- :member is status, intent, created_by or project_id.
-- value: text; NULL: the tasks without one. n: bigint.
SELECT
    CASE :member::text
        WHEN 'status' THEN status::text
        WHEN 'intent' THEN intent
        WHEN 'created_by' THEN created_by
        WHEN 'project_id' THEN project_id::text
    END COLLATE "C" AS value,
    count(*) AS n
FROM tasks
WHERE :filter
GROUP BY 1
ORDER BY 2 DESC, 1 ASC NULLS LAST
LIMIT :most::bigint
