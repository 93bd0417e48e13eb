-- group_services: how many tasks match a filter, by service, the most first.
--
-- It looks at the tasks between :read_since and :read_until (NULL: no bound), and counts only the
-- services :candidates (NULL: any). It returns at most :most services.
-- value: text. n: bigint.
SELECT touched.service AS value, count(*) AS n
FROM tasks
CROSS JOIN unnest(tasks.services_touched) AS touched (service)
WHERE
    :filter
    AND (:read_since::timestamptz IS NULL OR created_at >= :read_since)
    AND (:read_until::timestamptz IS NULL OR created_at < :read_until)
    AND (
        :candidates::text[] IS NULL
        OR (services_touched && :candidates AND touched.service = ANY(:candidates))
    )
GROUP BY touched.service
ORDER BY n DESC, touched.service COLLATE "C"
LIMIT :most::bigint
