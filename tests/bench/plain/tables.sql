-- For the part `single`, after bare.sql: the ids of the tasks in a plain table with its index, and
-- rows to insert, so that pgbench has to make up none.
CREATE TABLE bare_keys (LIKE task_keys INCLUDING ALL);
INSERT INTO bare_keys SELECT * FROM task_keys;
ANALYZE bare_keys;

CREATE TABLE samples AS
SELECT
    row_number() OVER () AS number,
    project_id, request_text, created_by, status, services_touched, outcome, estimated_resources,
    actual_resources, external_ai_used, error_message, suggestions
FROM (SELECT * FROM tasks ORDER BY created_at DESC, task_id DESC LIMIT 10000) AS newest;
ALTER TABLE samples ADD PRIMARY KEY (number);
ANALYZE samples;
