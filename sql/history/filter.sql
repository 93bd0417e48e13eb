-- filter: the condition that a task matches a filter; other files write it as :filter.
--
-- NULL means any. One status or intent is compared by =, which keeps the order of the index. COPY
-- takes no parameters, so values are written into the text; therefore arrays are cast at each use.
(
    :statuses::task_status[] IS NULL
    OR (cardinality(:statuses::task_status[]) = 1 AND status = (:statuses::task_status[])[1])
    OR (cardinality(:statuses::task_status[]) > 1 AND status = ANY(:statuses))
)
AND (:services::text[] IS NULL OR services_touched @> :services)
AND (
    :intents::text[] IS NULL
    OR (cardinality(:intents::text[]) = 1 AND intent = (:intents::text[])[1])
    OR (cardinality(:intents::text[]) > 1 AND intent = ANY(:intents))
)
AND (:since::timestamptz IS NULL OR created_at >= :since)
AND (:until::timestamptz IS NULL OR created_at < :until)
AND (:created_by::text IS NULL OR created_by = :created_by)
AND (:project_id::uuid IS NULL OR project_id = :project_id)
AND (:outcome::jsonb IS NULL OR outcome @> :outcome)
