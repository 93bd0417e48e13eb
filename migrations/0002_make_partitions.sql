-- Partitions of tasks, made as they are needed, without ever locking out a reader or writer.
--
-- depends: 0001_create_tasks

DO $$
BEGIN
    PERFORM set_config('search_path', quote_ident(current_schema()) || ', pg_temp', TRUE);
END
$$;

-- One row a partition of tasks: its name, and its half-open range of created_at.
CREATE VIEW task_partitions AS
SELECT
    partition.relname AS name,
    (bounds.edge)[1]::timestamptz AS since,
    (bounds.edge)[2]::timestamptz AS until
FROM pg_inherits
INNER JOIN pg_class AS partition ON pg_inherits.inhrelid = partition.oid
CROSS JOIN
    regexp_match(
        pg_get_expr(partition.relpartbound, partition.oid),
        $$FROM \('([^']+)'\) TO \('([^']+)'\)$$
    ) AS bounds (edge)
WHERE pg_inherits.inhparent = 'tasks'::regclass;

CREATE FUNCTION refuse_task_removal() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the task history is append-only: % of % is refused', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'TA004';
END
$$;

CREATE FUNCTION refuse_partition_write() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'write to tasks, not to its partition %', TG_TABLE_NAME
        USING ERRCODE = 'TA006';
END
$$;

-- Make the partition that holds the given time, if none does.
--
-- width: 'month', 'week' or 'day', in UTC. Where that range would overlap partitions that
-- are there already (made under another width), it is cut to the gap between them.
-- ATTACH takes a lock that lets reads and writes go on; CREATE ... PARTITION OF does not.
CREATE FUNCTION make_task_partition(held timestamptz, width text) RETURNS void
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
