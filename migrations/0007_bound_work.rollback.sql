DO $$
BEGIN
    PERFORM set_config('search_path', quote_ident(current_schema()) || ', pg_temp', TRUE);
    PERFORM pg_advisory_xact_lock(hashtext('fold_task_counts'));
END
$$;

CREATE OR REPLACE FUNCTION refuse_lone_keys() RETURNS trigger
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

DO $$
DECLARE
    granting regprocedure;
BEGIN
    FOREACH granting IN ARRAY '{grant_serving(name),grant_reading(name)}'::regprocedure[] LOOP
        EXECUTE replace(
            pg_get_functiondef(granting),
            'FUNCTION make_task_partition, make_task_partitions,', 'FUNCTION make_task_partition,'
        );
    END LOOP;
END
$$;

DROP FUNCTION text_of_equal_numbers;
DROP FUNCTION created_at_of;
DROP FUNCTION make_task_partitions;

DROP FUNCTION fold_task_counts;
DROP FUNCTION move_task_count_deltas;
DROP FUNCTION split_task_counts;

CREATE FUNCTION split_task_counts(touched task_bucket[]) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    full_bucket task_bucket;
    parts task_bucket[];
BEGIN
    FOR full_bucket IN
        SELECT touched_bucket.*
        FROM unnest(touched) AS touched_bucket
        WHERE touched_bucket.grain BETWEEN 'month' AND 'minute'
            AND NOT EXISTS (
                SELECT
                FROM task_count_splits
                WHERE task_count_splits.service = touched_bucket.service
                    AND task_count_splits.grain = touched_bucket.grain
                    AND task_count_splits.bucket = touched_bucket.bucket
            )
            AND most_in_whole_bucket() < (
                SELECT sum(n)
                FROM task_counts
                WHERE task_counts.service = touched_bucket.service
                    AND task_counts.grain = touched_bucket.grain
                    AND task_counts.bucket = touched_bucket.bucket
            )
    LOOP
        INSERT INTO task_count_splits (service, grain, bucket)
        VALUES (full_bucket.service, full_bucket.grain, full_bucket.bucket);

        WITH part AS (
            INSERT INTO task_counts (service, grain, bucket, status, intent, n)
            SELECT
                full_bucket.service,
                finer(full_bucket.grain),
                bucket_of(finer(full_bucket.grain), created_at),
                status,
                intent,
                sum(n)
            FROM (
                SELECT created_at, status, intent, services_touched, 1 AS n
                FROM tasks
                UNION ALL
                -- These are added when they are folded.
                SELECT created_at, status, intent, services_touched, -n
                FROM task_count_deltas
            ) AS told
            WHERE created_at >= full_bucket.bucket
                AND created_at < bucket_after(full_bucket.grain, full_bucket.bucket)
                AND (full_bucket.service = '' OR services_touched @> ARRAY[full_bucket.service])
            GROUP BY 3, 4, 5
            HAVING sum(n) <> 0
            RETURNING service, grain, bucket
        )
        SELECT array_agg(DISTINCT (part.service, part.grain, part.bucket)::task_bucket)
        INTO parts
        FROM part;

        PERFORM split_task_counts(parts);
    END LOOP;
END
$$;

CREATE FUNCTION fold_task_counts(most bigint) RETURNS bigint
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path FROM CURRENT
AS $$
DECLARE
    folded bigint;
    touched task_bucket[];
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtext('fold_task_counts')) THEN
        RETURN NULL;
    END IF;

    WITH taken AS (
        DELETE FROM task_count_deltas
        WHERE ctid = ANY(ARRAY(SELECT ctid FROM task_count_deltas LIMIT most))
        RETURNING created_at, status, services_touched, intent, n
    ),

    changed AS NOT MATERIALIZED (
        SELECT service, created_at, status, intent, n
        FROM taken
        CROSS JOIN LATERAL (
            SELECT DISTINCT unnest(array_append(services_touched, '')) AS service
        ) AS touching
    ),

    placed AS (
        SELECT service, grain, created_at, status, intent, n
        FROM changed
        CROSS JOIN (VALUES ('year'::task_grain), ('month')) AS always (grain)
        UNION ALL
        SELECT within.service, finer(within.grain), created_at, status, intent, n
        FROM (
            SELECT changed.*, coarse AS grain, bucket_of(coarse, created_at) AS bucket
            FROM changed
            CROSS JOIN unnest('{month,day,hour,minute}'::task_grain[]) AS coarse
            -- A fence: joined by service alone, each task would meet all splits of its service.
            OFFSET 0
        ) AS within
        INNER JOIN task_count_splits AS split
            ON within.service = split.service
                AND within.grain = split.grain
                AND within.bucket = split.bucket
    ),

    noted AS (
        INSERT INTO task_day_changes AS known (day, fold)
        SELECT DISTINCT bucket_of('day', created_at), pg_current_xact_id()::text::bigint
        FROM taken
        ON CONFLICT (day) DO UPDATE SET fold = excluded.fold
    ),

    summed AS (
        INSERT INTO task_counts AS cell (service, grain, bucket, status, intent, n)
        SELECT service, grain, bucket_of(grain, created_at), status, intent, sum(n)
        FROM placed
        GROUP BY 1, 2, 3, 4, 5
        HAVING sum(n) <> 0
        ON CONFLICT (service, grain, bucket, status, intent)
        DO UPDATE SET n = cell.n + excluded.n
        RETURNING service, grain, bucket
    )

    SELECT
        (SELECT count(*) FROM taken),
        (SELECT array_agg(DISTINCT (service, grain, bucket)::task_bucket) FROM summed)
    INTO folded, touched;

    PERFORM split_task_counts(touched);
    RETURN folded;
END
$$;

CREATE OR REPLACE FUNCTION rebuild_task_counts() RETURNS bigint
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('fold_task_counts'));
    DELETE FROM task_counts;
    DELETE FROM task_count_deltas;
    INSERT INTO task_count_deltas (created_at, status, services_touched, intent, n)
    SELECT created_at, status, services_touched, intent, 1
    FROM tasks;
    RETURN fold_task_counts((SELECT count(*) FROM task_count_deltas));
END
$$;

-- Folds were numbered by transaction ids before; the next one must come after all that are noted.
UPDATE task_day_changes SET fold = 0;

DROP FUNCTION require_own_transaction;

ALTER TABLE tasks
DROP CONSTRAINT tasks_services_touched_names,
ADD CONSTRAINT tasks_services_touched_names
CHECK (
    cardinality(services_touched) <= 100
    AND array_position(services_touched, NULL) IS NULL
    AND array_position(services_touched, '') IS NULL
);

DROP FUNCTION are_service_names;

REVOKE ALL ON FUNCTION
fold_task_counts, split_task_counts FROM PUBLIC; -- noqa: CP02
