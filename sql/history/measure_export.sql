-- measure_export: how many tasks an export has, and how many of its cells look like formulas.
--
-- :place, if it has bounds, is the range to look at. The tasks are those after the task :after_id,
-- which was created at :after_at, if these are not NULL. :columns are the names of the cells of the
-- export; NULL: look at none.
-- tasks, formulas: bigint.
SELECT
    count(*) AS tasks,
    CASE
        WHEN :columns::text[] IS NULL THEN 0
        ELSE
            count(*) FILTER (WHERE 'created_by' = ANY(:columns) AND is_formula(created_by))
            + count(*) FILTER (WHERE 'intent' = ANY(:columns) AND is_formula(intent))
            + count(*) FILTER (
                WHERE 'services_touched' = ANY(:columns)
                AND is_formula(services_cell(services_touched))
            )
            + count(*) FILTER (WHERE 'request_text' = ANY(:columns) AND is_formula(request_text))
            + count(*) FILTER (WHERE 'error_message' = ANY(:columns) AND is_formula(error_message))
    END AS formulas
FROM tasks
WHERE
    :filter
    AND ((:place::timestamptz[])[1] IS NULL OR created_at >= (:place)[1])
    AND ((:place)[2] IS NULL OR created_at < (:place)[2])
    AND (
        :after_at::timestamptz IS NULL
        OR ((created_at, task_id) < (:after_at, :after_id::uuid) AND created_at <= :after_at)
    )
