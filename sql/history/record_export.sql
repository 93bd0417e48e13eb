-- record_export: record an export that has ended; one row.
--
-- :export is a JSON object of its columns. document: text, its manifest as a JSON object.
INSERT INTO exports (
    export_id, key_name, request_id, filter, project_id, format, columns, raw, after, snapshot,
    taken_at, tasks, bytes, sha256, first_task, last_task, neutralised, complete, version
)
SELECT
    export_id, key_name, request_id, filter, project_id, format, columns, raw, after, snapshot,
    taken_at, tasks, bytes, sha256, first_task, last_task, neutralised, complete, version
FROM jsonb_populate_record(NULL::exports, :export::jsonb)
RETURNING export_document(exports) AS document
