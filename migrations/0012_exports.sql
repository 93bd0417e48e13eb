-- Exports: which tasks were given out as a file, to whom, and the hash of that file.
--
-- The service adds a row at the end of each export, also if the reader left before. Rows are never
-- changed or removed.
--
-- SQLSTATE TA004 an export may not be changed or removed.
--
-- depends: 0011_feed

DO $$ BEGIN
    PERFORM set_config('search_path', quote_ident(current_schema()) || ', pg_temp', TRUE);
END $$;

CREATE TABLE exports (
    export_id uuid PRIMARY KEY,
    -- The API key or the subject of the token; NULL if the service requires none.
    key_name text,
    request_id text,
    -- The filters, with the time that `days` and `last` meant.
    filter jsonb NOT NULL,
    -- The only project whose tasks were exported; NULL: of all projects.
    project_id uuid,
    format text NOT NULL CHECK (format IN ('ndjson', 'csv')),
    -- Of CSV: its columns, and whether cells that look like formulas were left as they are.
    columns text[],
    raw boolean,
    -- The task after which the export began; NULL: with the newest one.
    after uuid,
    -- pg_current_snapshot() of the only snapshot that all tasks were read in, and its time.
    snapshot text NOT NULL,
    taken_at timestamptz NOT NULL,
    ended_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- What was sent, before compression.
    tasks bigint NOT NULL CHECK (tasks >= 0),
    bytes bigint NOT NULL CHECK (bytes >= 0),
    sha256 bytea NOT NULL CHECK (octet_length(sha256) = 32),
    first_task uuid,
    last_task uuid,
    -- How many cells begin with an apostrophe that the task does not have; NULL: not known.
    neutralised bigint,
    -- Whether every task was sent.
    complete boolean NOT NULL,
    version text NOT NULL,
    db_role name NOT NULL DEFAULT session_user
);

CREATE INDEX exports_newest ON exports (ended_at, export_id);

CREATE FUNCTION refuse_export_change() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'exports are recorded for ever: % of % is refused', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'TA004';
END
$$;

REVOKE ALL ON FUNCTION refuse_export_change FROM PUBLIC; -- noqa: CP02

CREATE TRIGGER refuse_change BEFORE UPDATE OR DELETE ON exports
FOR EACH ROW EXECUTE FUNCTION refuse_export_change();

CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON exports
EXECUTE FUNCTION refuse_export_change();

ALTER TABLE exports ENABLE ALWAYS TRIGGER refuse_change;
ALTER TABLE exports ENABLE ALWAYS TRIGGER refuse_truncate;

-- The manifest of an export: a JSON object.
CREATE FUNCTION export_document(export exports) RETURNS text
LANGUAGE sql STABLE
RETURN json_build_object(
    'export_id', export.export_id,
    'filter', export.filter,
    'format', export.format,
    'columns', export.columns,
    'raw', export.raw,
    'after', export.after,
    'snapshot', export.snapshot,
    'taken_at', rfc3339(export.taken_at),
    'ended_at', rfc3339(export.ended_at),
    'tasks', export.tasks,
    'bytes', export.bytes,
    'sha256', encode(export.sha256, 'hex'),
    'first_task', export.first_task,
    'last_task', export.last_task,
    'neutralised', export.neutralised,
    'complete', export.complete,
    'by', export.key_name,
    'version', export.version
)::text;

-- Whether a spreadsheet would run a cell as a formula. Some read the full-width signs as well, and
-- some skip a leading tab or line break.
CREATE FUNCTION is_formula(cell text) RETURNS boolean
LANGUAGE sql IMMUTABLE
RETURN cell <> '' AND strpos(E'=+-@\t\r\n＝＋－＠', left(cell, 1)) > 0;

-- A cell that no spreadsheet runs: an apostrophe marks it as text.
CREATE FUNCTION neutral_cell(cell text) RETURNS text
LANGUAGE sql IMMUTABLE
RETURN CASE WHEN is_formula(cell) THEN '''' || cell ELSE cell END;

-- The names of services in one cell: a;b. If a name has ; or ", the cell is a JSON array.
CREATE FUNCTION services_cell(names text[]) RETURNS text
LANGUAGE sql STABLE
RETURN CASE
    WHEN strpos(array_to_string(names, ''), ';') > 0 OR strpos(array_to_string(names, ''), '"') > 0
        THEN array_to_json(names)::text
    ELSE array_to_string(names, ';')
END;
