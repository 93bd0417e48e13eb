-- list_exports: one page of manifests, of the export that ended last first; one row.
--
-- The exports must be of :project_id, if that is not NULL. The page has at most :limit, and begins
-- after the export :after_id, which ended at :after_at, if these are not NULL.
-- exports: text, a JSON array. last_at, last_id: of the last export of the page. has_more: boolean,
-- whether exports follow the page.
WITH fetched AS MATERIALIZED (
    SELECT
        ended_at,
        export_id,
        export_document(exports) AS document,
        row_number() OVER (ORDER BY ended_at DESC, export_id DESC) AS place
    FROM exports
    WHERE
        (:project_id::uuid IS NULL OR project_id = :project_id)
        AND (
            :after_at::timestamptz IS NULL
            OR (ended_at, export_id) < (:after_at, :after_id::uuid)
        )
    ORDER BY ended_at DESC, export_id DESC
    LIMIT :limit::int + 1
)

SELECT
    '[' || COALESCE(
        string_agg(document, ',' ORDER BY place) FILTER (WHERE place <= :limit), ''
    ) || ']' AS exports,
    (array_agg(ended_at ORDER BY place DESC) FILTER (WHERE place <= :limit))[1] AS last_at,
    (array_agg(export_id ORDER BY place DESC) FILTER (WHERE place <= :limit))[1] AS last_id,
    count(*) > :limit AS has_more
FROM fetched
