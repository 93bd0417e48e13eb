-- measure_export: how many tasks an export has, and how many of its cells look like formulas.
--
-- :columns are the names of the cells of the export. If it is NULL, no cell is looked at.
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
    AND :exported
