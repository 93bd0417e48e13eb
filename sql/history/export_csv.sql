-- export_csv: the tasks that match in one partition as cells of CSV, newest first; for COPY.
--
-- It returns the columns :shown of those in the subquery, in that order. :raw leaves cells that a
-- spreadsheet would run as they are.
SELECT :shown
FROM (
    SELECT
        task_id,
        status,
        rfc3339(created_at) AS created_at_utc,
        rfc3339(approved_at) AS approved_at_utc,
        rfc3339(completed_at) AS completed_at_utc,
        trim_scale(extract(EPOCH FROM completed_at - created_at)) AS duration_seconds,
        rfc3339(recorded_at) AS recorded_at_utc,
        CASE WHEN :raw::boolean THEN created_by ELSE neutral_cell(created_by) END AS created_by,
        project_id,
        CASE WHEN :raw THEN intent ELSE neutral_cell(intent) END AS intent,
        CASE
            WHEN :raw THEN services_cell(services_touched)
            ELSE neutral_cell(services_cell(services_touched))
        END AS services_touched,
        CASE WHEN :raw THEN request_text ELSE neutral_cell(request_text) END AS request_text,
        CASE WHEN :raw THEN error_message ELSE neutral_cell(error_message) END AS error_message,
        outcome,
        estimated_resources,
        actual_resources,
        external_ai_used,
        suggestions
    FROM tasks
    WHERE
        :filter
        AND :exported
    ORDER BY created_at DESC, tasks.task_id DESC
) AS exported
