-- Everything as the migrations before have made it, with the same counts.
LOCK TABLE tasks IN SHARE ROW EXCLUSIVE MODE;

DO $$ BEGIN
    PERFORM set_config('search_path', quote_ident(current_schema()) || ', pg_temp', TRUE);
END $$;

ALTER VIEW task_count_deltas RENAME TO uncounted_task_changes;
DROP FUNCTION rebuild_task_counts, fold_task_counts, add_to_task_counts, split_task_counts;
DROP TABLE task_count_splits_due;
DELETE FROM task_day_changes;

-- Changes that task_counts does not contain yet: 1 for what a task is now, -1 for what it was.
--
-- Before PostgreSQL 17 only an owner may VACUUM. If the service's role may not, autovacuum does it.
CREATE TABLE task_count_deltas (
    created_at timestamptz NOT NULL,
    status task_status NOT NULL,
    services_touched text[] NOT NULL,
    intent text,
    n smallint NOT NULL
) WITH (
    autovacuum_vacuum_scale_factor = 0,
    vacuum_index_cleanup = on,
    autovacuum_vacuum_threshold = 1000
);

-- A bucket is split by its tasks less their deltas, which are found by time.
CREATE INDEX task_count_deltas_by_time ON task_count_deltas (created_at);

INSERT INTO task_count_deltas (created_at, status, services_touched, intent, n)
SELECT created_at, status, services_touched, intent, n
FROM uncounted_task_changes;

DROP VIEW uncounted_task_changes;
DROP FUNCTION logged_task_changes, queued_task_changes;

CREATE FUNCTION note_new_tasks() RETURNS trigger
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path FROM CURRENT
AS $$
BEGIN
    INSERT INTO task_count_deltas (created_at, status, services_touched, intent, n)
    SELECT created_at, status, services_touched, intent, 1
    FROM recorded;
    RETURN NULL;
END
$$;

CREATE TRIGGER note_new AFTER INSERT ON tasks
REFERENCING NEW TABLE AS recorded
FOR EACH STATEMENT EXECUTE FUNCTION note_new_tasks();

CREATE FUNCTION note_changed_tasks() RETURNS trigger
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path FROM CURRENT
AS $$
BEGIN
    INSERT INTO task_count_deltas (created_at, status, services_touched, intent, n)
    SELECT created_at, status, services_touched, intent, -1
    FROM before_change
    UNION ALL
    SELECT created_at, status, services_touched, intent, 1
    FROM after_change;
    RETURN NULL;
END
$$;

CREATE TRIGGER note_changed AFTER UPDATE ON tasks
REFERENCING OLD TABLE AS before_change NEW TABLE AS after_change
FOR EACH STATEMENT EXECUTE FUNCTION note_changed_tasks();

-- Split the touched buckets that hold too many tasks, and their parts that do, the fullest first.
--
-- No split starts after split_until. A bucket that is left as it is stays exact and is slower to
-- read; the next fold that touches it splits it.
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

-- Move a portion of the deltas into task_counts, as move_task_count_deltas does, and split buckets
-- for at most split_seconds.
--
-- folded is NULL if another session folds. A session that is killed leaves everything as it was.
-- Raises invalid_transaction_state if it is not the only work of its transaction.
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
CREATE FUNCTION rebuild_task_counts() RETURNS bigint
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
fold_task_counts, move_task_count_deltas, split_task_counts, rebuild_task_counts,
note_new_tasks, note_changed_tasks
FROM PUBLIC; -- noqa: CP02
