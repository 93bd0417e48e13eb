-- What roles were granted on tables stays theirs: who serves goes on serving.
DO $$
BEGIN
    PERFORM set_config('search_path', quote_ident(current_schema()) || ', pg_temp', TRUE);
END
$$;

DROP FUNCTION grant_serving;
DROP FUNCTION grant_reading;

ALTER TABLE task_count_deltas RESET (vacuum_index_cleanup);
ALTER TABLE task_count_deltas SET (autovacuum_vacuum_threshold = 10000);

-- Make the partition that holds the given time, if none does.
--
-- width: 'month', 'week' or 'day', in UTC. Where that range would overlap partitions that
-- are there already (made under another width), it is cut to the gap between them.
-- ATTACH takes a lock that lets reads and writes go on; CREATE ... PARTITION OF does not.
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

CREATE OR REPLACE FUNCTION keep_task_keys() RETURNS trigger
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path FROM CURRENT
AS $$
BEGIN
    INSERT INTO task_keys (task_id, created_at)
    SELECT task_id, created_at
    FROM recorded
    WHERE NOT EXISTS (
        SELECT FROM task_keys
        WHERE task_keys.task_id = recorded.task_id
            AND task_keys.created_at = recorded.created_at
    );
    RETURN NULL;
END
$$;

DROP TRIGGER refuse_lone ON task_keys;
DROP FUNCTION refuse_lone_keys;

DO $$
DECLARE
    partition text;
BEGIN
    FOR partition IN SELECT name FROM task_partitions LOOP
        EXECUTE format('ALTER TABLE %I ENABLE TRIGGER refuse_truncate', partition);
    END LOOP;
END
$$;

ALTER TABLE task_keys ENABLE TRIGGER refuse_truncate;
ALTER TABLE task_keys ENABLE TRIGGER refuse_change;
ALTER TABLE tasks ENABLE TRIGGER refuse_truncate;
ALTER TABLE tasks ENABLE TRIGGER refuse_delete;
ALTER TABLE tasks ENABLE TRIGGER guard_change;

GRANT EXECUTE ON FUNCTION
make_task_partition, fold_task_counts, split_task_counts, rebuild_task_counts,
keep_task_keys, note_new_tasks, note_changed_tasks,
guard_task_change, refuse_recorded_at, refuse_task_removal, refuse_partition_write
TO PUBLIC; -- noqa: CP02
