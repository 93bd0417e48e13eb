-- get_export: the manifest of an export; no row if there is none.
--
-- The export must be of the key :key_name and of :project_id, if these are not NULL.
-- document: text, a JSON object.
SELECT export_document(exports) AS document
FROM exports
WHERE
    export_id = :export_id::uuid
    AND (:key_name::text IS NULL OR key_name = :key_name)
    AND (:project_id::uuid IS NULL OR project_id = :project_id)
