-- The history: one row for each task, partitioned by the time of its creation.
--
-- A unique key of a partitioned table must contain the partition key, so tasks cannot keep task_id
-- unique. task_keys does, and its created_at tells in which partition a task is.
--
-- depends:

CREATE EXTENSION IF NOT EXISTS btree_gin;

-- Functions that are made here find the tables of this schema whatever search_path a caller has
-- set; a caller's temporary tables cannot take their place.
DO $$ BEGIN
    PERFORM set_config('search_path', quote_ident(current_schema()) || ', pg_temp', TRUE);
END $$;

-- The states in their order. Every state from 'completed' on is terminal.
CREATE TYPE task_status AS ENUM (
    'pending', 'approved', 'executing', 'completed', 'failed', 'rejected'
);

CREATE FUNCTION is_terminal(status task_status) RETURNS boolean
LANGUAGE sql IMMUTABLE
RETURN status >= 'completed';

-- At most 100 names of 1 to 255 characters. A longer name would not fit into a row of the index
-- task_counts_cells, which holds a service and an intent.
CREATE FUNCTION are_service_names(names text[]) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE
AS $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY names LOOP
        IF (char_length(name) BETWEEN 1 AND 255) IS NOT TRUE THEN
            RETURN FALSE;
        END IF;
    END LOOP;
    RETURN cardinality(names) <= 100 AND COALESCE(array_ndims(names), 1) = 1;
END
$$;

CREATE TABLE tasks (
    task_id uuid NOT NULL,
    project_id uuid,
    created_at timestamptz NOT NULL DEFAULT now(),
    recorded_at timestamptz NOT NULL DEFAULT now(),
    approved_at timestamptz,
    completed_at timestamptz,
    status task_status NOT NULL DEFAULT 'pending',
    request_text text NOT NULL,
    created_by text,
    services_touched text[] NOT NULL DEFAULT '{}',
    outcome jsonb,
    intent text GENERATED ALWAYS AS (outcome ->> 'action_type') STORED,
    estimated_resources jsonb,
    actual_resources jsonb,
    external_ai_used jsonb,
    error_message text,
    suggestions jsonb,
    -- Read backwards, its index is the order of every list.
    PRIMARY KEY (created_at, task_id),
    CONSTRAINT tasks_created_at_since_2000
    CHECK (created_at >= '2000-01-01 00:00:00+00'),
    CONSTRAINT tasks_created_at_ahead
    CHECK (created_at <= recorded_at + interval '24 hours'),
    CONSTRAINT tasks_request_text_length
    CHECK (char_length(request_text) BETWEEN 1 AND 65536),
    CONSTRAINT tasks_created_by_length
    CHECK (char_length(created_by) BETWEEN 1 AND 255),
    CONSTRAINT tasks_intent_length
    CHECK (char_length(intent) <= 255),
    CONSTRAINT tasks_services_touched_names
    CHECK (are_service_names(services_touched)),
    CONSTRAINT tasks_json_kinds
    CHECK (
        jsonb_typeof(outcome) = 'object'
        AND jsonb_typeof(estimated_resources) = 'object'
        AND jsonb_typeof(actual_resources) = 'object'
        AND jsonb_typeof(external_ai_used) = 'object'
        AND jsonb_typeof(suggestions) = 'array'
    ),
    -- PostgreSQL cannot write a text over 1 GiB, so a task whose document is longer could be
    -- recorded and never be read. A number of a few bytes may have 131,072 digits when it is
    -- written out. Up to 64 KiB of stored values are at most 0.5 GiB, and need not be written out.
    -- The expressions are short because PostgreSQL prepares them for each statement.
    CONSTRAINT tasks_length
    CHECK (
        pg_column_size(ROW(
            request_text, error_message, outcome, estimated_resources, actual_resources,
            external_ai_used, suggestions
        )) <= 65536
        OR octet_length(to_json(ROW(
            request_text, error_message, outcome, estimated_resources, actual_resources,
            external_ai_used, suggestions
        ))::text) <= 268435456
    )
) PARTITION BY RANGE (created_at);

-- The order of a list within one state.
CREATE INDEX tasks_newest_by_status ON tasks (status, created_at DESC, task_id DESC);

-- Serves any combination of filters. New entries wait in a pending list, which makes recording
-- cheaper. Every read of the index reads that list too, so it is kept short (kB). Neither parameter
-- can be changed later for all partitions at once.
CREATE INDEX tasks_filters ON tasks USING gin (
    services_touched, status, intent, created_by, project_id, outcome jsonb_path_ops
) WITH (fastupdate = on, gin_pending_list_limit = 64);

CREATE TABLE task_keys (
    task_id uuid PRIMARY KEY,
    created_at timestamptz NOT NULL,
    -- SHA-256 of the content as first recorded; NULL if the task was not recorded by the service.
    digest bytea
);

-- When the task of an id was created; NULL if it is not recorded.
--
-- Strictly it is STABLE, since an unknown id may be recorded later. What it returns for a known id
-- never changes. Because it is IMMUTABLE, the planner computes it for the value of a parameter and
-- opens one partition. Call it only in plans that are made for each execution.
CREATE FUNCTION created_at_of(task uuid) RETURNS timestamptz
LANGUAGE sql IMMUTABLE
RETURN (SELECT task_keys.created_at FROM task_keys WHERE task_keys.task_id = task);

-- When the tasks of several ids were created. It is IMMUTABLE for the same reason as created_at_of.
CREATE FUNCTION created_at_of_all(tasks uuid[]) RETURNS timestamptz[]
LANGUAGE sql IMMUTABLE
RETURN ARRAY(
    SELECT DISTINCT task_keys.created_at FROM task_keys WHERE task_keys.task_id = ANY(tasks)
);

-- RFC 3339 in UTC, always with microseconds.
CREATE FUNCTION rfc3339(at timestamptz) RETURNS text
LANGUAGE sql STABLE
RETURN to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"');

-- The JSON object of a task, with all its columns, as clients get it.
CREATE FUNCTION task_document(task tasks) RETURNS text
LANGUAGE sql STABLE
RETURN json_build_object(
    'task_id', task.task_id,
    'project_id', task.project_id,
    'request_text', task.request_text,
    'created_by', task.created_by,
    'status', task.status,
    'created_at', rfc3339(task.created_at),
    'recorded_at', rfc3339(task.recorded_at),
    'approved_at', rfc3339(task.approved_at),
    'completed_at', rfc3339(task.completed_at),
    'services_touched', task.services_touched,
    'outcome', task.outcome,
    'estimated_resources', task.estimated_resources,
    'actual_resources', task.actual_resources,
    'external_ai_used', task.external_ai_used,
    'error_message', task.error_message,
    'suggestions', task.suggestions
)::text;

-- STABLE, as convert_to is: so the planner inlines it.
CREATE FUNCTION task_etag(document text) RETURNS text
LANGUAGE sql STABLE
RETURN '"' || left(encode(sha256(convert_to(document, 'UTF8')), 'hex'), 32) || '"';

-- Whether a task has one of the entity tags of match, and none of none_match; '*' is any tag, and
-- NULL no condition.
CREATE FUNCTION task_matches(task tasks, match text[], none_match text[]) RETURNS boolean
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    SELECT
        (match IS NULL OR '*' = ANY(match) OR tag = ANY(match))
        AND (none_match IS NULL OR NOT ('*' = ANY(none_match) OR tag = ANY(none_match)))
    FROM task_etag(task_document(task)) AS tag
$$;

-- Whether a change would leave a task as it is. If the change names a state and no time for it, the
-- time that the trigger guard_change has set is no difference.
CREATE FUNCTION task_is_as(task tasks, change jsonb) RETURNS boolean
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    SELECT
        (
            task.status, task.approved_at, task.completed_at, task.services_touched, task.outcome,
            task.estimated_resources, task.actual_resources, task.external_ai_used,
            task.error_message, task.suggestions
        ) IS NOT DISTINCT FROM (
            changed.status,
            CASE
                WHEN change ? 'status' AND changed.status = 'approved'
                    THEN COALESCE(changed.approved_at, task.approved_at)
                ELSE changed.approved_at
            END,
            CASE
                WHEN change ? 'status' AND is_terminal(changed.status)
                    THEN COALESCE(changed.completed_at, task.completed_at)
                ELSE changed.completed_at
            END,
            changed.services_touched, changed.outcome, changed.estimated_resources,
            changed.actual_resources, changed.external_ai_used, changed.error_message,
            changed.suggestions
        )
    FROM jsonb_populate_record(task, change) AS changed
$$;

-- The text of JSON values, the same for values whose numbers are equal: 1 for 1.0, 1.5 for 1.50.
--
-- jsonb keeps the fractional zeros of a number, and nothing else of its spelling. Most texts have
-- none. In the others only numbers are changed, not what strings contain.
CREATE FUNCTION text_of_equal_numbers(written text) RETURNS text
LANGUAGE plpgsql IMMUTABLE
AS $$
BEGIN
    IF written LIKE '%.%' AND written ~ '\.[0-9]*0[],}]' THEN
        RETURN regexp_replace(
            written,
            '("(?:[^"\\]|\\.)*")|(\.[0-9]*[1-9])0+(?![0-9])|\.0+(?![0-9])',
            '\1\2',
            'g'
        );
    END IF;
    RETURN written;
END
$$;
