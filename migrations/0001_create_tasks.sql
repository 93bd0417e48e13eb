-- The history of tasks: one row a task, partitioned by the time of its creation.
--
-- A unique key of a partitioned table must contain the partition key, so tasks alone
-- cannot keep a task_id unique. task_keys does, and says in which partition a task is.
--
-- depends:

CREATE EXTENSION IF NOT EXISTS btree_gin;

-- Functions look for tables where the migration makes them, whatever their caller's search_path,
-- and last among the caller's temporary tables.
DO $$
BEGIN
    PERFORM set_config('search_path', quote_ident(current_schema()) || ', pg_temp', TRUE);
END
$$;

-- The states in their order. Every state from 'completed' on is terminal.
CREATE TYPE task_status AS ENUM (
    'pending', 'approved', 'executing', 'completed', 'failed', 'rejected'
);

CREATE FUNCTION is_terminal(status task_status) RETURNS boolean
LANGUAGE sql IMMUTABLE
RETURN status >= 'completed';

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
    PRIMARY KEY (task_id, created_at),
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
    CHECK (
        cardinality(services_touched) <= 100
        AND array_position(services_touched, NULL) IS NULL
        AND array_position(services_touched, '') IS NULL
    ),
    CONSTRAINT tasks_json_kinds
    CHECK (
        jsonb_typeof(outcome) = 'object'
        AND jsonb_typeof(estimated_resources) = 'object'
        AND jsonb_typeof(actual_resources) = 'object'
        AND jsonb_typeof(external_ai_used) = 'object'
        AND jsonb_typeof(suggestions) = 'array'
    )
) PARTITION BY RANGE (created_at);

-- The order of every answer.
CREATE INDEX tasks_newest ON tasks (created_at DESC, task_id DESC);

-- The same order within one state.
CREATE INDEX tasks_newest_by_status ON tasks (status, created_at DESC, task_id DESC);

-- Any combination of filters, by intersecting posting lists. Without the pending list
-- (fastupdate) a read never pays for what the writers put off.
CREATE INDEX tasks_filters ON tasks USING gin (
    services_touched, status, intent, created_by, project_id, outcome jsonb_path_ops
) WITH (fastupdate = off);

CREATE TABLE task_keys (
    task_id uuid PRIMARY KEY,
    created_at timestamptz NOT NULL,
    -- SHA-256 of the content as first recorded. NULL: recorded by SQL, not by the service.
    digest bytea
);

-- RFC 3339 in UTC, always with microseconds.
CREATE FUNCTION rfc3339(at timestamptz) RETURNS text
LANGUAGE sql STABLE
RETURN to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"');

-- A task whole, as the JSON object that clients get.
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
