-- What the peer keeps: one plain table with the tasks of the service's, and the indexes that its
-- questions want. The indexes are made when the rows are in, so they are as small as can be.

CREATE TABLE tasks (
    task_id uuid PRIMARY KEY,
    project_id uuid,
    request_text text NOT NULL,
    created_by varchar(255),
    status varchar(20) NOT NULL,
    created_at timestamptz NOT NULL,
    approved_at timestamptz,
    completed_at timestamptz,
    services_touched text[] NOT NULL,
    outcome jsonb,
    estimated_resources jsonb,
    actual_resources jsonb,
    external_ai_used jsonb,
    error_message text,
    suggestions jsonb
);
