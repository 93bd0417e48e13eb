-- Roles: the owner migrates, one role serves, another one reads.
--
-- grant_serving and grant_reading give a role exactly what it needs, and revoke what else it had.
-- `audit migrate --grant-to` runs them again after a migration that needs further grants. They name
-- things of later migrations, because they run after all of them.
--
-- depends: 0007_access_keys

DO $$ BEGIN
    PERFORM set_config('search_path', quote_ident(current_schema()) || ', pg_temp', TRUE);
END $$;

-- PostgreSQL lets everyone call a new function. Everyone keeps those that only read, with the
-- rights of the caller. A trigger fires without this right. But a role that has it could put a
-- trigger of the log or keys on a table of its own, and so write whatever it likes.
REVOKE ALL ON FUNCTION
make_task_partition, make_task_partitions, record_tasks, update_task, update_tasks,
keep_task_keys, refuse_lone_keys, guard_task_change, refuse_recorded_at, refuse_task_removal,
refuse_partition_write, queue_recorded_tasks, queue_changed_tasks, assign_transaction_id,
refuse_event_change, make_event_partition, append_task_log_mark, note_task_timeline,
sequence_task_events,
fold_task_counts, add_to_task_counts, split_task_counts, rebuild_task_counts, save_task_tally
FROM PUBLIC; -- noqa: CP02

-- Let a role read everything, and do nothing else.
--
-- Raises undefined_object if there is no such role, and insufficient_privilege if grants would not
-- bind it: it owns the history, or has rights to it that were not granted here.
CREATE FUNCTION grant_reading(grantee name) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    everything text := 'tasks, task_keys, task_counts, task_count_splits, task_count_deltas, '
        'task_count_splits_due, task_tallies, task_partitions, task_event_queue, task_events, '
        'task_log_marks, task_log_state, task_timelines, task_history, access_keys, exports, '
        '_yoyo_migration';
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
    FROM unnest('{tasks,task_events}'::regclass[]) AS partitioned
    CROSS JOIN pg_partition_tree(partitioned)
    WHERE level > 0;
    EXECUTE format('REVOKE ALL ON %s%s FROM %I', everything, others, grantee);
    EXECUTE format('ALTER DEFAULT PRIVILEGES FOR ROLE %I REVOKE ALL ON TABLES FROM %I',
        owner_name, grantee);
    EXECUTE format('ALTER DEFAULT PRIVILEGES FOR ROLE %I IN SCHEMA %I REVOKE ALL ON TABLES FROM %I',
        owner_name, current_schema(), grantee);
    EXECUTE format(
        'REVOKE ALL ON FUNCTION make_task_partition, make_task_partitions, fold_task_counts, '
        'add_to_task_counts, split_task_counts, rebuild_task_counts, keep_task_keys, '
        'refuse_lone_keys, record_tasks, update_task, update_tasks, sequence_task_events, '
        'append_task_log_mark, note_task_timeline, make_event_partition, '
        'queue_recorded_tasks, queue_changed_tasks, save_task_tally FROM %I', grantee
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
-- make partitions, fold counts and sequence events. Raises as grant_reading does.
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
        'GRANT INSERT (export_id, key_name, request_id, filter, project_id, format, columns, raw, '
        'after, snapshot, taken_at, tasks, bytes, sha256, first_task, last_task, neutralised, '
        'complete, version) ON exports TO %I', grantee
    );
    EXECUTE format(
        'GRANT EXECUTE ON FUNCTION make_task_partition, make_task_partitions, record_tasks, '
        'update_task, update_tasks, fold_task_counts, sequence_task_events, save_task_tally TO %I',
        grantee
    );
END
$$;

REVOKE ALL ON FUNCTION grant_reading, grant_serving FROM PUBLIC; -- noqa: CP02
