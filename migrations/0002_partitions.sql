-- Partitions of tasks, made when they are needed, while others read and write.
--
-- SQLSTATE TA004 TRUNCATE of a partition, TA006 a write to one, which the statement triggers of
-- tasks would not see, TA010 more partitions than the caller allows.
--
-- depends: 0001_tasks

DO $$ BEGIN
    PERFORM set_config('search_path', quote_ident(current_schema()) || ', pg_temp', TRUE);
END $$;

-- One row for each partition of tasks: its name, and its half-open range of created_at.
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

-- Make the partitions that hold the given times, if there are none; return how many were made.
--
-- width: 'month', 'week' or 'day', in UTC. If that range overlaps existing partitions (made with
-- another width), it is cut to the gap between them.
-- most: make no more than this, the newest first; call it again until it returns 0. NULL: make all.
-- most_partitions: raise TA010, and make none, if there would be more of them; NULL: no limit.
-- ATTACH takes a lock that lets reads and writes go on; CREATE ... PARTITION OF does not.
-- Raises invalid_parameter_value for another width, for a time before 2000 or over a year ahead.
CREATE FUNCTION make_task_partitions(
    times timestamptz[], width text, most integer DEFAULT NULL, most_partitions integer DEFAULT NULL
) RETURNS integer
LANGUAGE plpgsql
SECURITY DEFINER
SET timezone = 'UTC'
SET search_path FROM CURRENT
AS $$
DECLARE
    known tstzmultirange;
    held timestamptz;
    gap tstzrange;
    existing integer;
    missing integer;
    made integer := 0;
    base_name text;
    name text;
BEGIN
    IF (width IN ('month', 'week', 'day')) IS NOT TRUE THEN
        RAISE EXCEPTION 'a partition is a month, week or day wide, not %', width
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    FOREACH held IN ARRAY times LOOP
        IF (held >= '2000-01-01' AND held < now() + interval '1 year') IS NOT TRUE THEN
            RAISE EXCEPTION 'no partition is made for %', held
                USING ERRCODE = 'invalid_parameter_value';
        END IF;
    END LOOP;
    SELECT range_agg(tstzrange(since, until)) INTO known FROM task_partitions;
    IF NOT EXISTS (SELECT FROM unnest(times) AS needed WHERE (known @> needed) IS NOT TRUE) THEN
        RETURN 0;
    END IF;

    PERFORM pg_advisory_xact_lock(hashtext('make_task_partition'));
    SELECT COALESCE(range_agg(tstzrange(since, until)), '{}'), count(*)
    INTO known, existing
    FROM task_partitions;
    SELECT count(DISTINCT date_trunc(width, needed)) INTO missing
    FROM unnest(times) AS needed
    WHERE NOT known @> needed;
    IF missing > 0 AND existing + missing > most_partitions THEN
        RAISE EXCEPTION '% partitions would be made beside %', missing, existing
            USING ERRCODE = 'TA010';
    END IF;

    FOR held IN SELECT DISTINCT needed FROM unnest(times) AS needed ORDER BY needed DESC LOOP
        EXIT WHEN made = most;
        CONTINUE WHEN known @> held;
        SELECT piece INTO gap
        FROM unnest(
            tstzmultirange(
                tstzrange(
                    date_trunc(width, held), date_trunc(width, held) + ('1 ' || width)::interval
                )
            ) - known
        ) AS piece
        WHERE piece @> held;
        base_name := 'tasks_' || to_char(lower(gap), 'YYYYMMDD');
        name := base_name;
        -- A partition that was detached may still have the name.
        FOR suffix IN 2 .. 1000 LOOP
            EXIT WHEN to_regclass(quote_ident(name)) IS NULL;
            name := base_name || '_' || suffix;
        END LOOP;
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
            name, lower(gap), upper(gap)
        );
        known := known + tstzmultirange(gap);
        made := made + 1;
    END LOOP;
    RETURN made;
END
$$;

CREATE FUNCTION make_task_partition(held timestamptz, width text) RETURNS void
LANGUAGE sql
SECURITY DEFINER
SET search_path FROM CURRENT
BEGIN ATOMIC
    SELECT make_task_partitions(ARRAY[held], width);
END;
