-- The runs go back into the base, which becomes task_counts again.
DO $$ BEGIN
    PERFORM set_config('search_path', quote_ident(current_schema()) || ', pg_temp', TRUE);
    PERFORM pg_advisory_xact_lock(hashtext('fold_task_counts'));
    PERFORM pg_advisory_xact_lock(hashtext('sequence_task_events'));
    WHILE (SELECT runs <> '{}' FROM task_count_run_lists ORDER BY list DESC LIMIT 1) LOOP
        PERFORM return_task_count_runs(NULL);
    END LOOP;
END $$;

DROP FUNCTION return_task_count_runs;
DROP FUNCTION merge_task_count_runs;
DROP FUNCTION append_task_count_runs;
DROP FUNCTION are_old_rows_kept;
DROP VIEW task_counts;
DROP TABLE task_count_runs;
DROP TABLE task_count_run_lists;

ALTER TABLE task_count_base REPLICA IDENTITY DEFAULT;
ALTER TABLE task_count_base RENAME TO task_counts;
ALTER INDEX task_count_base_cells RENAME TO task_counts_cells;

DROP FUNCTION add_to_task_counts;

-- Add changes to task_counts, and note which buckets have to be split.
-- The caller holds the lock of the sequencer.
--
-- The changes are those of the events up to counted_to that the counts do not contain yet. If
-- counted_to is NULL, the counts are empty, and get all tasks without the deltas.
CREATE FUNCTION add_to_task_counts(state task_log_state, counted_to bigint) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    touched task_bucket[];
BEGIN
    WITH taken AS (
        SELECT created_at, status, services_touched, intent, n
        FROM logged_task_changes(state.counted, counted_to, state.uncounted_since)
        WHERE counted_to IS NOT NULL
        UNION ALL
        SELECT created_at, status, services_touched, intent, 1
        FROM tasks
        WHERE counted_to IS NULL
        UNION ALL
        SELECT created_at, status, services_touched, intent, -n
        FROM task_count_deltas
        WHERE counted_to IS NULL
    ),

    changed AS MATERIALIZED (
        SELECT service, created_at, bucket_of('month', created_at) AS month, status, intent, n
        FROM taken
        CROSS JOIN LATERAL (
            SELECT DISTINCT unnest(array_append(services_touched, '')) AS service
        ) AS touching
    ),

    -- Each change in its year, in its month, and in the parts of the split buckets that hold it.
    placed AS (
        SELECT service, 'year'::task_grain AS grain, bucket_of('year', month) AS bucket,
            status, intent, n
        FROM changed
        UNION ALL
        SELECT service, 'month', month, status, intent, n
        FROM changed
        UNION ALL
        SELECT service, 'day', bucket_of('day', created_at), status, intent, n
        FROM changed
        INNER JOIN task_count_splits AS split USING (service)
        WHERE split.grain = 'month' AND split.bucket = month
        UNION ALL
        SELECT service, 'hour', bucket_of('hour', created_at), status, intent, n
        FROM changed
        INNER JOIN task_count_splits AS split USING (service)
        WHERE split.grain = 'day' AND split.bucket = bucket_of('day', created_at)
        UNION ALL
        SELECT service, 'minute', bucket_of('minute', created_at), status, intent, n
        FROM changed
        INNER JOIN task_count_splits AS split USING (service)
        WHERE split.grain = 'hour' AND split.bucket = bucket_of('hour', created_at)
        UNION ALL
        SELECT service, 'second', bucket_of('second', created_at), status, intent, n
        FROM changed
        INNER JOIN task_count_splits AS split USING (service)
        WHERE split.grain = 'minute' AND split.bucket = bucket_of('minute', created_at)
    ),

    summed AS (
        INSERT INTO task_counts AS cell (service, grain, bucket, status, intent, n)
        SELECT service, grain, bucket, status, intent, sum(n)
        FROM placed
        GROUP BY 1, 2, 3, 4, 5
        HAVING sum(n) <> 0
        ON CONFLICT (service, grain, bucket, status, intent)
        DO UPDATE SET n = cell.n + excluded.n
        RETURNING service, grain, bucket, n
    ),

    -- A bucket of which no cell has changed was noted before, if it had to be.
    unsplit AS (
        SELECT DISTINCT service, grain, bucket
        FROM summed
        WHERE
            grain BETWEEN 'month' AND 'minute'
            AND NOT EXISTS (
                SELECT
                FROM task_count_splits AS split
                WHERE split.service = summed.service
                    AND split.grain = summed.grain
                    AND split.bucket = summed.bucket
            )
    )

    SELECT array_agg((service, grain, bucket)::task_bucket)
    INTO touched
    FROM unsplit;

    INSERT INTO task_count_splits_due (service, grain, bucket, n)
    SELECT touching.service, touching.grain, touching.bucket, held.n
    FROM unnest(touched) AS touching
    CROSS JOIN LATERAL (
        SELECT sum(task_counts.n) AS n
        FROM task_counts
        WHERE task_counts.service = touching.service
            AND task_counts.grain = touching.grain
            AND task_counts.bucket = touching.bucket
    ) AS held
    WHERE held.n > most_in_whole_bucket()
    ON CONFLICT (service, grain, bucket) DO UPDATE SET n = excluded.n;
END
$$;

REVOKE ALL ON FUNCTION add_to_task_counts FROM PUBLIC; -- noqa: CP02

-- Split the buckets that are due, and their parts that hold too many tasks, the fullest first.
--
-- No split starts after split_until. A bucket that is left as it is stays exact and is slower to
-- read; a later fold splits it.
CREATE OR REPLACE FUNCTION split_task_counts(split_until timestamptz) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    due record;
    part_grain task_grain;
    bucket_end timestamptz;
    is_done boolean := FALSE;
BEGIN
    WHILE NOT is_done LOOP
        is_done := TRUE;
        FOR due IN SELECT service, grain, bucket FROM task_count_splits_due ORDER BY n DESC LOOP
            IF clock_timestamp() >= split_until THEN
                RETURN;
            END IF;
            -- The parts that this loop adds are due in the next one.
            is_done := FALSE;
            part_grain := finer(due.grain);
            -- A value that the planner knows, so that it opens no later partition.
            bucket_end := bucket_after(due.grain, due.bucket);
            DELETE FROM task_count_splits_due
            WHERE service = due.service AND grain = due.grain AND bucket = due.bucket;
            INSERT INTO task_count_splits (service, grain, bucket)
            VALUES (due.service, due.grain, due.bucket);

            WITH part AS (
                INSERT INTO task_counts (service, grain, bucket, status, intent, n)
                SELECT
                    due.service,
                    part_grain,
                    bucket_of(part_grain, created_at),
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
                ) AS known
                WHERE created_at >= due.bucket
                    AND created_at < bucket_end
                    AND (due.service = '' OR services_touched @> ARRAY[due.service])
                GROUP BY 3, 4, 5
                HAVING sum(n) <> 0
                RETURNING service, grain, bucket, n
            )
            INSERT INTO task_count_splits_due (service, grain, bucket, n)
            SELECT service, grain, bucket, sum(n)
            FROM part
            WHERE grain <> 'second'
            GROUP BY service, grain, bucket
            HAVING sum(n) > most_in_whole_bucket();
        END LOOP;
    END LOOP;
END
$$;

-- Count the next events of the log, and split buckets for at most split_seconds.
--
-- most_cells: an event costs two cells, its year and its month, for each of the services before and
-- after it and for all tasks; NULL: count all. At least one event is counted. folded: how many were
-- counted; NULL if another session folds. is_last: whether none was left.
-- is_lazy: if PostgreSQL cannot remove the old versions of the counts, count only when a quarter as
-- many events wait as there are old versions, or 5,000. Each reader reads all old versions, and
-- adds all events that wait. A dump, a long transaction, and the replication slot of a standby that
-- is gone keep old versions.
-- A session that is killed leaves everything as it was.
-- Raises invalid_transaction_state if it is not the only work of its transaction.
CREATE OR REPLACE FUNCTION fold_task_counts(
    most_cells bigint,
    split_seconds double precision DEFAULT 1,
    is_lazy boolean DEFAULT FALSE,
    OUT folded bigint,
    OUT is_last boolean
)
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path FROM CURRENT
SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    split_until timestamptz := clock_timestamp() + make_interval(secs => split_seconds);
    state task_log_state;
    old_versions bigint;
    counted_to bigint;
BEGIN
    PERFORM require_own_transaction();
    IF NOT pg_try_advisory_xact_lock(hashtext('fold_task_counts')) THEN
        RETURN;
    END IF;
    -- The sequencer needs it for some milliseconds.
    PERFORM pg_advisory_xact_lock(hashtext('sequence_task_events'));
    SELECT * INTO STRICT state FROM task_log_state;
    old_versions := pg_stat_get_dead_tuples('task_counts'::regclass);
    IF is_lazy
        AND old_versions > pg_stat_get_live_tuples('task_counts'::regclass) + 1000
        AND state.size - state.counted < least(old_versions / 4, 5000)
    THEN
        folded := 0;
        is_last := TRUE;
        RETURN;
    END IF;
    IF state.counted < state.size THEN
        SELECT max(position) + 1 INTO counted_to
        FROM (
            SELECT position, cells, sum(cells) OVER (ORDER BY position) AS running
            FROM (
                SELECT
                    position,
                    2 * (
                        cardinality(services_touched) + 1
                            + COALESCE(cardinality(before_services) + 1, 0)
                    ) AS cells
                FROM task_events
                WHERE position >= state.counted AND at >= state.uncounted_since
                ORDER BY position
                LIMIT most_cells / 2 + 1
            ) AS next_events
        ) AS summed
        WHERE most_cells IS NULL OR running <= most_cells OR running = cells;
    END IF;
    folded := COALESCE(counted_to - state.counted, 0);
    is_last := state.counted + folded = state.size;
    IF folded > 0 THEN
        PERFORM add_to_task_counts(state, counted_to);
        state.counted := counted_to;
        IF is_last THEN
            state.uncounted_since := 'infinity';
        END IF;
        PERFORM append_task_log_mark(state);
    END IF;
    -- Each split reads all deltas.
    IF state.size - state.counted < 5000 THEN
        PERFORM split_task_counts(split_until);
    END IF;
END
$$;

-- Count everything anew, while others record; return how many tasks were counted. A bucket that was
-- split stays split. Raises as fold_task_counts does.
CREATE OR REPLACE FUNCTION rebuild_task_counts() RETURNS bigint
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    state task_log_state;
BEGIN
    PERFORM require_own_transaction();
    PERFORM pg_advisory_xact_lock(hashtext('fold_task_counts'));
    PERFORM pg_advisory_xact_lock(hashtext('sequence_task_events'));
    SELECT * INTO STRICT state FROM task_log_state;
    DELETE FROM task_counts;
    DELETE FROM task_count_splits_due;
    DELETE FROM task_tallies;
    PERFORM add_to_task_counts(state, NULL);
    PERFORM split_task_counts('infinity');
    RETURN (SELECT count(*) FROM tasks);
END
$$;

-- At least as many tasks of each service as were created in a window, and not many more: those of
-- the years and months in the window, and of the days or months that its ends cut through.
--
-- since, until: the ends of the window. whole: the parts of it that are whole months and years.
-- any_status, any_intent: any of them; NULL: any.
CREATE OR REPLACE FUNCTION bound_services(
    any_status task_status[],
    any_intent text[],
    since timestamptz,
    until timestamptz,
    whole bar_part[]
)
RETURNS TABLE (service text, bound bigint)
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
DECLARE
    state task_log_state;
    first_month timestamptz := bucket_of('month', since);
    last_month timestamptz := bucket_of('month', until);
BEGIN
    SELECT * INTO STRICT state FROM task_log_state;
    RETURN QUERY
    WITH RECURSIVE counted AS (
        (SELECT service FROM task_counts WHERE service > '' ORDER BY service LIMIT 1)
        UNION ALL
        SELECT (
            SELECT following.service
            FROM task_counts AS following
            WHERE following.service > counted.service
            ORDER BY following.service
            LIMIT 1
        )
        FROM counted
        WHERE counted.service IS NOT NULL
    ),

    fresh AS (
        SELECT touched.service, sum(delta.n) AS n
        FROM uncounted_task_changes(state) AS delta
        CROSS JOIN LATERAL unnest(delta.services_touched) AS touched (service)
        WHERE
            delta.n > 0
            AND delta.created_at >= since
            AND delta.created_at < until
            AND (any_status IS NULL OR delta.status = ANY(any_status))
            AND (any_intent IS NULL OR delta.intent = ANY(any_intent))
        GROUP BY touched.service
    ),

    -- The month that the start cuts through, and the one that the end cuts through.
    cut AS MATERIALIZED (
        SELECT DISTINCT
            month,
            greatest(month, bucket_of('day', since)) AS since,
            least(bucket_after('month', month), until) AS until
        FROM (VALUES (first_month), (last_month)) AS ends (month)
        WHERE (month < since OR month = last_month) AND month < until
    ),

    every_service AS (
        SELECT service FROM counted WHERE service IS NOT NULL
        UNION
        SELECT service FROM fresh
    )

    SELECT
        every_service.service,
        (
            COALESCE(
                (
                    SELECT sum(cell.n)
                    FROM unnest(whole) AS part
                    INNER JOIN task_counts AS cell
                        ON
                            cell.service = every_service.service
                            AND cell.grain = part.grain
                            AND cell.bucket >= part.since
                            AND cell.bucket < part.until
                    WHERE
                        (any_status IS NULL OR cell.status = ANY(any_status))
                        AND (any_intent IS NULL OR cell.intent = ANY(any_intent))
                ), 0
            )
            + COALESCE(
                (
                    SELECT sum(cell.n)
                    FROM cut
                    CROSS JOIN LATERAL (
                        SELECT EXISTS (
                            SELECT
                            FROM task_count_splits AS split
                            WHERE
                                split.service = every_service.service
                                AND split.grain = 'month'
                                AND split.bucket = cut.month
                        ) AS is_split
                    ) AS month
                    INNER JOIN task_counts AS cell
                        ON
                            cell.service = every_service.service
                            AND cell.grain
                            = CASE WHEN month.is_split THEN 'day' ELSE 'month' END::task_grain
                            AND cell.bucket
                            >= CASE WHEN month.is_split THEN cut.since ELSE cut.month END
                            AND cell.bucket < cut.until
                    WHERE
                        (any_status IS NULL OR cell.status = ANY(any_status))
                        AND (any_intent IS NULL OR cell.intent = ANY(any_intent))
                ), 0
            )
            + COALESCE(fresh.n, 0)
        )::bigint
    FROM every_service
    LEFT JOIN fresh USING (service);
END
$$;

-- Let a role read everything, and do nothing else.
--
-- Raises undefined_object if there is no such role, and insufficient_privilege if grants would not
-- bind it: it owns the history, or has rights to it that were not granted here.
CREATE OR REPLACE FUNCTION grant_reading(grantee name) RETURNS void
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
