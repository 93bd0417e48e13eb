-- Who may do what: the owner migrates, one role serves, another one reads.
--
-- grant_serving and grant_reading give a role exactly what it needs, and take from it what it had
-- besides. Whoever is granted something new in a later migration is granted it by running them
-- again: `audit migrate --grant-to`.
--
-- SQLSTATE TA007 a key without its task.
--
-- depends: 0005_access_keys

DO $$
BEGIN
    PERFORM set_config('search_path', quote_ident(current_schema()) || ', pg_temp', TRUE);
END
$$;

-- PostgreSQL lets everyone call a new function. What remains for all are those that only read, with
-- the rights of who calls them. A trigger fires without this right; but who has it could put
-- a trigger of the counts or keys on a table of their own, and write there whatever they like.
REVOKE ALL ON FUNCTION
make_task_partition, fold_task_counts, split_task_counts, rebuild_task_counts,
keep_task_keys, note_new_tasks, note_changed_tasks,
guard_task_change, refuse_recorded_at, refuse_task_removal, refuse_partition_write
FROM PUBLIC; -- noqa: CP02

-- A superuser, or a role that may set session_replication_role, skips ordinary triggers without
-- a trace. These, which keep what is recorded as it is, fire all the same. The others look at what
-- is new; a subscriber of logical replication takes that as the publisher recorded it.
ALTER TABLE tasks ENABLE ALWAYS TRIGGER guard_change;
ALTER TABLE tasks ENABLE ALWAYS TRIGGER refuse_delete;
ALTER TABLE tasks ENABLE ALWAYS TRIGGER refuse_truncate;
ALTER TABLE task_keys ENABLE ALWAYS TRIGGER refuse_change;
ALTER TABLE task_keys ENABLE ALWAYS TRIGGER refuse_truncate;

DO $$
DECLARE
    partition text;
BEGIN
    FOR partition IN SELECT name FROM task_partitions LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ALWAYS TRIGGER refuse_truncate', partition);
    END LOOP;
END
$$;

-- A key comes with its task: nobody can take an id so that a task cannot be recorded.
--
-- A session plans this once, maybe while there are few tasks, and then records millions. So each is
-- looked up by index, one by one: OFFSET keeps PostgreSQL from making a join of it.
CREATE FUNCTION refuse_lone_keys() RETURNS trigger
LANGUAGE plpgsql
SET search_path FROM CURRENT
SET enable_seqscan = off
AS $$
DECLARE
    lone uuid;
BEGIN
    SELECT claimed.task_id INTO lone
    FROM claimed
    WHERE NOT EXISTS (
        SELECT
        FROM tasks
        WHERE tasks.task_id = claimed.task_id AND tasks.created_at = claimed.created_at
        OFFSET 0
    )
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'no task % is recorded: its key comes with it', lone
            USING ERRCODE = 'TA007';
    END IF;
    RETURN NULL;
END
$$;

REVOKE ALL ON FUNCTION refuse_lone_keys FROM PUBLIC; -- noqa: CP02

CREATE TRIGGER refuse_lone AFTER INSERT ON task_keys
REFERENCING NEW TABLE AS claimed
FOR EACH STATEMENT EXECUTE FUNCTION refuse_lone_keys();

-- As before, but each looked up by index, one by one, for the same reason.
CREATE OR REPLACE FUNCTION keep_task_keys() RETURNS trigger
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path FROM CURRENT
SET enable_seqscan = off
AS $$
BEGIN
    INSERT INTO task_keys (task_id, created_at)
    SELECT task_id, created_at
    FROM recorded
    WHERE NOT EXISTS (
        SELECT FROM task_keys
        WHERE task_keys.task_id = recorded.task_id
            AND task_keys.created_at = recorded.created_at
        OFFSET 0
    );
    RETURN NULL;
END
$$;

-- Make the partition that holds the given time, if none does.
--
-- width: 'month', 'week' or 'day', in UTC. Where that range would overlap partitions that
-- are there already (made under another width), it is cut to the gap between them.
-- ATTACH takes a lock that lets reads and writes go on; CREATE ... PARTITION OF does not.
-- It is refused for any other width, and for times at which no task can be recorded for long.
CREATE OR REPLACE FUNCTION make_task_partition(held timestamptz, width text) RETURNS void
LANGUAGE plpgsql
SECURITY DEFINER
SET timezone = 'UTC'
SET search_path FROM CURRENT
AS $$
DECLARE
    lower_edge timestamptz := date_trunc(width, held);
    upper_edge timestamptz := date_trunc(width, held) + ('1 ' || width)::interval;
    before_edge timestamptz;
    after_edge timestamptz;
    name text;
BEGIN
    IF (width IN ('month', 'week', 'day')) IS NOT TRUE THEN
        RAISE EXCEPTION 'a partition is a month, week or day wide, not %', width
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF (held >= '2000-01-01' AND held < now() + interval '1 year') IS NOT TRUE THEN
        RAISE EXCEPTION 'no partition is made for %', held
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF EXISTS (SELECT FROM task_partitions WHERE since <= held AND held < until) THEN
        RETURN;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtext('make_task_partition'));
    IF EXISTS (SELECT FROM task_partitions WHERE since <= held AND held < until) THEN
        RETURN;
    END IF;
    SELECT max(until) FILTER (WHERE until <= held), min(since) FILTER (WHERE since > held)
    INTO before_edge, after_edge
    FROM task_partitions;
    lower_edge := greatest(lower_edge, before_edge);
    upper_edge := least(upper_edge, after_edge);
    name := 'tasks_' || to_char(lower_edge, 'YYYYMMDD');
    EXECUTE format('CREATE TABLE %I (LIKE tasks INCLUDING ALL)', name);
    EXECUTE format(
        'CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON %I '
        'EXECUTE FUNCTION refuse_task_removal()', name
    );
    EXECUTE format('ALTER TABLE %I ENABLE ALWAYS TRIGGER refuse_truncate', name);
    EXECUTE format(
        'CREATE TRIGGER refuse_write BEFORE INSERT OR UPDATE ON %I '
        'EXECUTE FUNCTION refuse_partition_write()', name
    );
    EXECUTE format(
        'ALTER TABLE tasks ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
        name, lower_edge, upper_edge
    );
END
$$;

-- Before PostgreSQL 17 only an owner may VACUUM. For a role that serves, autovacuum then does it.
ALTER TABLE task_count_deltas SET (
    vacuum_index_cleanup = on, autovacuum_vacuum_threshold = 1000
);

-- Let a role read everything, and do nothing else.
--
-- Raises undefined_object where there is no such role, and insufficient_privilege where grants
-- would not bind it: it owns the history, or has rights to it that are not from here.
CREATE FUNCTION grant_reading(grantee name) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    everything text := 'tasks, task_keys, task_counts, task_count_splits, task_count_deltas, '
        'task_day_changes, task_partitions, access_keys, _yoyo_migration';
    others text := ', _yoyo_log, _yoyo_version, yoyo_lock';
    owner_name name;
    surplus text;
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = grantee) THEN
        RAISE EXCEPTION 'there is no role %', quote_ident(grantee)
            USING ERRCODE = 'undefined_object';
    END IF;
    SELECT pg_get_userbyid(relowner) INTO owner_name
    FROM pg_class
    WHERE oid = 'tasks'::regclass;
    IF pg_has_role(grantee, owner_name, 'MEMBER') THEN
        RAISE EXCEPTION 'grants do not bind the role %: it is a superuser, or acts for the owner %',
            quote_ident(grantee), quote_ident(owner_name)
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    IF has_schema_privilege(grantee, current_schema(), 'CREATE') THEN
        RAISE EXCEPTION 'the role % may create in the schema: REVOKE CREATE ON SCHEMA % FROM PUBLIC',
            quote_ident(grantee), quote_ident(current_schema())
            USING ERRCODE = 'insufficient_privilege';
    END IF;

    SELECT others || COALESCE(string_agg(', ' || relid::regclass, ''), '') INTO others
    FROM pg_partition_tree('tasks')
    WHERE level > 0;
    EXECUTE format('REVOKE ALL ON %s%s FROM %I', everything, others, grantee);
    EXECUTE format('ALTER DEFAULT PRIVILEGES FOR ROLE %I REVOKE ALL ON TABLES FROM %I',
        owner_name, grantee);
    EXECUTE format('ALTER DEFAULT PRIVILEGES FOR ROLE %I IN SCHEMA %I REVOKE ALL ON TABLES FROM %I',
        owner_name, current_schema(), grantee);
    EXECUTE format(
        'REVOKE ALL ON FUNCTION make_task_partition, fold_task_counts, split_task_counts, '
        'rebuild_task_counts, keep_task_keys, note_new_tasks, note_changed_tasks FROM %I', grantee
    );

    -- What is left comes from PUBLIC, or from a role that this one is a member of.
    SELECT string_agg(DISTINCT privilege || ' on ' || relation, ', ') INTO surplus
    FROM unnest(string_to_array(everything || others, ', ')) AS relation
    CROSS JOIN unnest('{INSERT,UPDATE,REFERENCES,DELETE,TRUNCATE,TRIGGER}'::text[]) AS privilege
    WHERE has_table_privilege(grantee, relation, privilege)
        OR CASE
            WHEN privilege IN ('INSERT', 'UPDATE', 'REFERENCES')
                THEN has_any_column_privilege(grantee, relation, privilege)
        END;
    IF surplus IS NOT NULL THEN
        RAISE EXCEPTION 'the role % has, by PUBLIC or as a member of another role: %',
            quote_ident(grantee), surplus
            USING ERRCODE = 'insufficient_privilege';
    END IF;

    IF NOT has_database_privilege(grantee, current_database(), 'CONNECT') THEN
        EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), grantee);
    END IF;
    IF NOT has_schema_privilege(grantee, current_schema(), 'USAGE') THEN
        EXECUTE format('GRANT USAGE ON SCHEMA %I TO %I', current_schema(), grantee);
    END IF;
    EXECUTE format('GRANT SELECT ON %s TO %I', everything, grantee);
END
$$;

-- Let a role do what the service does: read, record what a client sends, change what may change,
-- make partitions and fold counts. Raises as grant_reading does.
CREATE FUNCTION grant_serving(grantee name) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
BEGIN
    PERFORM grant_reading(grantee);
    EXECUTE format(
        'GRANT INSERT (task_id, project_id, created_at, approved_at, completed_at, status, '
        'request_text, created_by, services_touched, outcome, estimated_resources, '
        'actual_resources, external_ai_used, error_message, suggestions), '
        'UPDATE (status, approved_at, completed_at, services_touched, outcome, '
        'estimated_resources, actual_resources, external_ai_used, error_message, suggestions) '
        'ON tasks TO %I', grantee
    );
    EXECUTE format('GRANT INSERT (task_id, created_at, digest) ON task_keys TO %I', grantee);
    EXECUTE format(
        'GRANT EXECUTE ON FUNCTION make_task_partition, fold_task_counts TO %I', grantee
    );
    IF current_setting('server_version_num')::int >= 170000 THEN
        EXECUTE format('GRANT MAINTAIN ON task_count_deltas TO %I', grantee);
    END IF;
END
$$;

REVOKE ALL ON FUNCTION grant_reading, grant_serving FROM PUBLIC; -- noqa: CP02
