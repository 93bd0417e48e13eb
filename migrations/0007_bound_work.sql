-- Folds that survive a restore into another server, run alone, are bounded, and always progress.
--
-- SQLSTATE TA010 more partitions than the caller allows.
--
-- depends: 0006_grant_roles

DO $$
BEGIN
    PERFORM set_config('search_path', quote_ident(current_schema()) || ', pg_temp', TRUE);
    -- A fold that runs now ends first; the next one is a new one.
    PERFORM pg_advisory_xact_lock(hashtext('fold_task_counts'));
END
$$;

-- What is recorded must fit into a row of task_counts_cells, which holds a service and an intent.
CREATE FUNCTION are_service_names(names text[]) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE
AS $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY names LOOP
        IF (char_length(name) BETWEEN 1 AND 255) IS NOT TRUE THEN
            RETURN FALSE;
        END IF;
    END LOOP;
    RETURN cardinality(names) <= 100 AND COALESCE(array_ndims(names), 1) = 1;
END
$$;

ALTER TABLE tasks
DROP CONSTRAINT tasks_services_touched_names,
ADD CONSTRAINT tasks_services_touched_names CHECK (are_service_names(services_touched));

-- Raise unless the caller's transaction has done nothing yet and takes a new snapshot for each
-- statement. Otherwise the snapshot may be older than the lock of the fold, and lack what the
-- previous fold has committed.
CREATE FUNCTION require_own_transaction() RETURNS void
LANGUAGE plpgsql STABLE
AS $$
BEGIN
    IF
        current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted')
        OR pg_current_xact_id_if_assigned() IS NOT NULL
    THEN
        RAISE EXCEPTION 'counts are folded and rebuilt in a READ COMMITTED transaction of its own'
            USING ERRCODE = 'invalid_transaction_state';
    END IF;
END
$$;

DROP FUNCTION split_task_counts;

-- Split those of the buckets that hold too many tasks, and their parts that do, the fullest first.
--
-- After split_until the rest stays as it is: such a bucket is slower to read, not wrong, and is
-- split by the next fold that touches it.
CREATE FUNCTION split_task_counts(touched task_bucket[], split_until timestamptz) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    full_bucket task_bucket;
    part_grain task_grain;
    bucket_end timestamptz;
    parts task_bucket[];
BEGIN
    FOR full_bucket IN
        SELECT unsplit.*
        FROM (
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
            -- A fence: most of the buckets are split already, and need not be summed up.
            OFFSET 0
        ) AS unsplit
        CROSS JOIN LATERAL (
            SELECT sum(n) AS n
            FROM task_counts
            WHERE task_counts.service = unsplit.service
                AND task_counts.grain = unsplit.grain
                AND task_counts.bucket = unsplit.bucket
        ) AS held
        WHERE held.n > most_in_whole_bucket()
        ORDER BY held.n DESC
    LOOP
        EXIT WHEN clock_timestamp() >= split_until;
        part_grain := finer(full_bucket.grain);
        -- A value that the planner knows, so that it opens no later partition.
        bucket_end := bucket_after(full_bucket.grain, full_bucket.bucket);

        INSERT INTO task_count_splits (service, grain, bucket)
        VALUES (full_bucket.service, full_bucket.grain, full_bucket.bucket);

        WITH part AS (
            INSERT INTO task_counts (service, grain, bucket, status, intent, n)
            SELECT
                full_bucket.service,
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
            WHERE created_at >= full_bucket.bucket
                AND created_at < bucket_end
                AND (full_bucket.service = '' OR services_touched @> ARRAY[full_bucket.service])
            GROUP BY 3, 4, 5
            HAVING sum(n) <> 0
            RETURNING service, grain, bucket
        )
        SELECT array_agg(DISTINCT (part.service, part.grain, part.bucket)::task_bucket)
        INTO parts
        FROM part;

        PERFORM split_task_counts(parts, split_until);
    END LOOP;
END
$$;

-- Move deltas into task_counts. The caller holds the lock of the fold.
--
-- most_cells: a delta costs two cells, its year and its month, for each of its services and for all
-- tasks; NULL: move all. At least one delta is moved. folded: how many were moved. is_last: whether
-- none was left.
--
-- Each statement is exact in its own snapshot, since tasks and their deltas commit together.
CREATE FUNCTION move_task_count_deltas(
    most_cells bigint, split_until timestamptz, OUT folded bigint, OUT is_last boolean
)
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    touched task_bucket[];
BEGIN
    WITH waiting AS MATERIALIZED (
        SELECT
            ctid AS place,
            2 * (cardinality(services_touched) + 1) AS cells,
            sum(2 * (cardinality(services_touched) + 1)) OVER (ROWS UNBOUNDED PRECEDING) AS running
        FROM (
            SELECT ctid, services_touched
            FROM task_count_deltas
            LIMIT most_cells / 2 + 2
        ) AS first_deltas
    ),

    taken AS (
        DELETE FROM task_count_deltas
        WHERE ctid = ANY(ARRAY(
            SELECT place
            FROM waiting
            WHERE most_cells IS NULL OR running <= most_cells OR running = cells
        ))
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

    -- Folds run one after the other, so that this number grows with each.
    noted AS (
        INSERT INTO task_day_changes AS known (day, fold)
        SELECT DISTINCT
            bucket_of('day', created_at),
            (SELECT COALESCE(max(task_day_changes.fold), 0) + 1 FROM task_day_changes)
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
        (SELECT count(*) FROM taken) = (SELECT count(*) FROM waiting),
        (SELECT array_agg(DISTINCT (service, grain, bucket)::task_bucket) FROM summed)
    INTO folded, is_last, touched;

    PERFORM split_task_counts(touched, split_until);
END
$$;

DROP FUNCTION fold_task_counts;

-- Move a portion of the deltas into task_counts, as move_task_count_deltas says, and split buckets
-- for split_seconds at most.
--
-- folded is NULL where another session folds. Killed at any point it leaves all as it was.
-- Raises invalid_transaction_state where it is not the only work of its transaction.
CREATE FUNCTION fold_task_counts(
    most_cells bigint, split_seconds double precision DEFAULT 1,
    OUT folded bigint, OUT is_last boolean
)
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path FROM CURRENT
AS $$
BEGIN
    PERFORM require_own_transaction();
    IF pg_try_advisory_xact_lock(hashtext('fold_task_counts')) THEN
        SELECT moved.folded, moved.is_last
        INTO fold_task_counts.folded, fold_task_counts.is_last
        FROM move_task_count_deltas(
            most_cells, clock_timestamp() + make_interval(secs => split_seconds)
        ) AS moved;
    END IF;
END
$$;

-- Count everything anew, while others record; return how many tasks were counted. A bucket that was
-- split stays split. Raises as fold_task_counts does.
CREATE OR REPLACE FUNCTION rebuild_task_counts() RETURNS bigint
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
BEGIN
    PERFORM require_own_transaction();
    PERFORM pg_advisory_xact_lock(hashtext('fold_task_counts'));
    DELETE FROM task_counts;
    -- One statement: tasks whose deltas it does not see are counted by these.
    WITH counted_anew AS (
        DELETE FROM task_count_deltas
    )

    INSERT INTO task_count_deltas (created_at, status, services_touched, intent, n)
    SELECT created_at, status, services_touched, intent, 1
    FROM tasks;
    RETURN (SELECT moved.folded FROM move_task_count_deltas(NULL, 'infinity') AS moved);
END
$$;

REVOKE ALL ON FUNCTION
split_task_counts, move_task_count_deltas, fold_task_counts FROM PUBLIC; -- noqa: CP02

-- Make partitions that hold the given times, where there are none; return how many were made.
--
-- width: 'month', 'week' or 'day', in UTC. Where that range would overlap partitions that are there
-- already (made under another width), it is cut to the gap between them. No more than most are
-- made, the newest first; call it again until it returns 0. NULL: make all.
-- most_partitions: raise TA010, and make none, if there would be more of them; NULL: no limit.
-- ATTACH takes a lock that lets reads and writes go on; CREATE ... PARTITION OF does not.
-- Raises invalid_parameter_value for another width, and for a time at which no task can be recorded
-- for a long time.
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

REVOKE ALL ON FUNCTION make_task_partitions FROM PUBLIC; -- noqa: CP02

-- Make the partition that holds the given time, as make_task_partitions does.
CREATE OR REPLACE FUNCTION make_task_partition(held timestamptz, width text) RETURNS void
LANGUAGE sql
SECURITY DEFINER
SET search_path FROM CURRENT
BEGIN ATOMIC
    SELECT make_task_partitions(ARRAY[held], width);
END;

-- A key comes with its task: nobody can take an id so that a task cannot be recorded.
--
-- Each month of the keys is checked by a statement that names its range as literals, so that it
-- opens the partitions of this range alone. Each key is looked up by index: OFFSET keeps PostgreSQL
-- from making a join of it.
CREATE OR REPLACE FUNCTION refuse_lone_keys() RETURNS trigger
LANGUAGE plpgsql
SET search_path FROM CURRENT
SET enable_seqscan = off
AS $$
DECLARE
    first_at timestamptz;
    last_at timestamptz;
    lone uuid;
BEGIN
    FOR first_at, last_at IN
        SELECT min(created_at), max(created_at)
        FROM claimed
        GROUP BY date_trunc('month', created_at)
    LOOP
        EXECUTE format(
            'SELECT claimed.task_id '
            'FROM claimed '
            'WHERE claimed.created_at BETWEEN %1$L AND %2$L '
            'AND NOT EXISTS ('
            'SELECT FROM tasks '
            'WHERE tasks.task_id = claimed.task_id AND tasks.created_at = claimed.created_at '
            'AND tasks.created_at BETWEEN %1$L AND %2$L '
            'OFFSET 0) '
            'LIMIT 1',
            first_at, last_at
        ) INTO lone;
        IF lone IS NOT NULL THEN
            RAISE EXCEPTION 'no task % is recorded: its key comes with it', lone
                USING ERRCODE = 'TA007';
        END IF;
    END LOOP;
    RETURN NULL;
END
$$;

-- When the task of an id was created; NULL: it is not recorded.
--
-- Strictly it is STABLE, since an id that is not known may be recorded later; what it returns for a
-- known one never changes. As IMMUTABLE, the planner computes it for the value of a parameter, and
-- opens one partition. Call it only in plans that are made for each execution.
CREATE FUNCTION created_at_of(task uuid) RETURNS timestamptz
LANGUAGE sql IMMUTABLE
RETURN (SELECT task_keys.created_at FROM task_keys WHERE task_keys.task_id = task);

-- Roles that serve may call the new functions, and keep what they had on the one made anew.
DO $$
DECLARE
    granting regprocedure;
    grantee regrole;
BEGIN
    FOREACH granting IN ARRAY '{grant_serving(name),grant_reading(name)}'::regprocedure[] LOOP
        EXECUTE replace(
            pg_get_functiondef(granting),
            'FUNCTION make_task_partition,', 'FUNCTION make_task_partition, make_task_partitions,'
        );
    END LOOP;
    FOR grantee IN
        SELECT acl.grantee
        FROM pg_proc
        CROSS JOIN aclexplode(proacl) AS acl
        WHERE pg_proc.oid = 'make_task_partition(timestamptz, text)'::regprocedure
            AND acl.grantee NOT IN (0, proowner)
    LOOP
        EXECUTE format(
            'GRANT EXECUTE ON FUNCTION make_task_partitions, fold_task_counts TO %s', grantee
        );
    END LOOP;
END
$$;

-- The text of a JSON value, the same for values whose numbers are equal: 1 for 1.0, 1.5 for 1.50.
--
-- jsonb keeps the fractional zeros of a number, and nothing else of its spelling. Most texts stay
-- as they are. In the others only numbers are changed, not what strings contain.
CREATE FUNCTION text_of_equal_numbers(value jsonb) RETURNS text
LANGUAGE plpgsql IMMUTABLE
AS $$
DECLARE
    written text := value::text;
BEGIN
    IF written LIKE '%.%' AND written ~ '\.[0-9]*0[],}]' THEN
        RETURN regexp_replace(
            written,
            '("(?:[^"\\]|\\.)*")|(\.[0-9]*[1-9])0+(?![0-9])|\.0+(?![0-9])',
            '\1\2',
            'g'
        );
    END IF;
    RETURN written;
END
$$;
