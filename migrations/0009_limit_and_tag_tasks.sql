-- How long a task may be, by whatever way it is recorded, and the entity tag of a task.
--
-- depends: 0006_grant_roles

DO $$
BEGIN
    PERFORM set_config('search_path', quote_ident(current_schema()) || ', pg_temp', TRUE);
END
$$;

-- PostgreSQL cannot write a text over 1 GiB, so a longer task could be recorded and never be read.
-- A number of a few bytes may be 131,072 digits long when it is written out. Below 64 KiB of values
-- that is 0.5 GiB at most, and nothing has to be written out to know that the task is short enough.
-- Tasks that are recorded already stay as they are.
ALTER TABLE tasks ADD CONSTRAINT tasks_length CHECK (
    octet_length(request_text)
    + COALESCE(octet_length(error_message), 0)
    + COALESCE(pg_column_size(outcome), 0)
    + COALESCE(pg_column_size(estimated_resources), 0)
    + COALESCE(pg_column_size(actual_resources), 0)
    + COALESCE(pg_column_size(external_ai_used), 0)
    + COALESCE(pg_column_size(suggestions), 0) <= 65536
    OR octet_length(to_json(request_text)::text)
    + COALESCE(octet_length(to_json(error_message)::text), 0)
    + COALESCE(octet_length(outcome::text), 0)
    + COALESCE(octet_length(estimated_resources::text), 0)
    + COALESCE(octet_length(actual_resources::text), 0)
    + COALESCE(octet_length(external_ai_used::text), 0)
    + COALESCE(octet_length(suggestions::text), 0) <= 268435456
) NOT VALID;

-- The entity tag of a task, from its document: another state has another tag.
CREATE FUNCTION task_etag(document text) RETURNS text
LANGUAGE sql IMMUTABLE
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

-- Whether a task is what a change says. The change moves it to a state and clears the time of that
-- state: then the trigger guard_change has set the time, and the same change again is no other one.
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
