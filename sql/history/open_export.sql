-- open_export: take one of the places for exports, and find what to read; one row.
--
-- is_open: boolean, whether one of the :most_exports places was free. It is taken until the
-- transaction ends. snapshot: text, and taken_at: timestamptz, of the whole transaction.
-- filter: text, the filter as a JSON object. can_record: boolean, whether this session may record
-- the export. after_at: timestamptz, when the task :after was created; NULL if there is none of
-- this id (and of :project_id, if that is not NULL). since, until: timestamptz[], the partitions in
-- which tasks may match, the newest first.
WITH asked AS MATERIALIZED (
    SELECT
        (
            SELECT place
            FROM generate_series(1, :most_exports::int) AS place
            WHERE pg_try_advisory_xact_lock(hashtext('task_audit_exports'), place)
            LIMIT 1
        ) AS place,
        (
            SELECT created_at
            FROM tasks
            WHERE
                task_id = :after::uuid
                AND created_at = created_at_of(:after)
                AND (:project_id::uuid IS NULL OR project_id = :project_id)
        ) AS after_at
)

SELECT
    asked.place IS NOT NULL AS is_open,
    pg_current_snapshot()::text AS snapshot,
    now() AS taken_at,
    (
        SELECT COALESCE(json_object_agg(member, value), '{}')::text
        FROM (
            VALUES
            ('status', to_jsonb(:statuses::task_status[])),
            ('service', to_jsonb(:services::text[])),
            ('intent', to_jsonb(:intents::text[])),
            ('since', to_jsonb(rfc3339(:since))),
            ('until', to_jsonb(rfc3339(:until))),
            ('created_by', to_jsonb(:created_by::text)),
            ('project_id', to_jsonb(:project_id)),
            ('outcome', :outcome::jsonb)
        ) AS given (member, value)
        WHERE value IS NOT NULL
    ) AS filter,
    NOT pg_is_in_recovery()
    AND current_setting('default_transaction_read_only') = 'off'
    AND has_column_privilege('exports', 'export_id', 'INSERT') AS can_record,
    asked.after_at,
    partitions.since,
    partitions.until
FROM asked
CROSS JOIN
    LATERAL (
        SELECT
            array_agg(task_partitions.since ORDER BY task_partitions.since DESC) AS since,
            array_agg(task_partitions.until ORDER BY task_partitions.since DESC) AS until
        FROM task_partitions
        WHERE
            (:since::timestamptz IS NULL OR task_partitions.until > :since)
            AND (:until::timestamptz IS NULL OR task_partitions.since < :until)
            AND (asked.after_at IS NULL OR task_partitions.since <= asked.after_at)
    ) AS partitions
