-- How many tasks there are, by service, time, state and intent.
--
-- The counts are kept from the events of the log. A fold adds the events from the position on up to
-- which the fold before has counted. A count is the sum of task_counts and of the events that it
-- does not contain yet, in one snapshot: exact at every moment.
--
-- Buckets are as fine as needed. Every service has years and months. A month, day, hour or minute
-- that holds more than 500 of its tasks is split into the next finer buckets. So the part of a
-- bucket that a limit of time cuts off, and that is counted from the rows, is small.
--
-- depends: 0004_event_log

DO $$ BEGIN
    PERFORM set_config('search_path', quote_ident(current_schema()) || ', pg_temp', TRUE);
END $$;

CREATE TYPE task_grain AS ENUM ('year', 'month', 'day', 'hour', 'minute', 'second');

-- n tasks of a service ('' means all tasks) were created in a bucket, by state and intent.
CREATE TABLE task_counts (
    service text NOT NULL,
    grain task_grain NOT NULL,
    bucket timestamptz NOT NULL,
    status task_status NOT NULL,
    intent text,
    n bigint NOT NULL
) WITH (fillfactor = 80);

CREATE UNIQUE INDEX task_counts_cells
ON task_counts (service, grain, bucket DESC, status, intent) INCLUDE (n) NULLS NOT DISTINCT;

-- The buckets that are split: task_counts has their parts too. A bucket stays split.
CREATE TABLE task_count_splits (
    service text,
    grain task_grain,
    bucket timestamptz,
    PRIMARY KEY (service, grain, bucket)
);

-- Buckets that hold too many tasks and are not split yet. Splitting reads all deltas, so it waits
-- until there are few.
CREATE TABLE task_count_splits_due (
    service text,
    grain task_grain,
    bucket timestamptz,
    n bigint NOT NULL,
    PRIMARY KEY (service, grain, bucket)
);

-- How many tasks match a filter that task_counts does not know, by day. Processes of the service
-- share these tallies, and keep them when they restart.
CREATE TABLE task_tallies (
    -- A digest of the filter.
    filter bytea PRIMARY KEY,
    -- The days before it are not counted yet.
    since timestamptz NOT NULL,
    -- The days contain the events of the log before this position.
    position bigint NOT NULL,
    -- An object from the start of a day, in seconds since 1970, to how many tasks match.
    days json NOT NULL,
    saved_at timestamptz NOT NULL DEFAULT now()
);

-- The next finer grain; NULL after 'second'. Its results are constants, so that the planner inlines
-- it.
CREATE FUNCTION finer(grain task_grain) RETURNS task_grain
LANGUAGE sql IMMUTABLE
RETURN CASE grain
    WHEN 'year' THEN 'month'::task_grain
    WHEN 'month' THEN 'day'::task_grain
    WHEN 'day' THEN 'hour'::task_grain
    WHEN 'hour' THEN 'minute'::task_grain
    WHEN 'minute' THEN 'second'::task_grain
END;

-- The start of the bucket that holds a time, and of the bucket after it. date_bin takes a tenth of
-- the time of date_trunc, which has to read the names of the grain and of the time zone.
CREATE FUNCTION bucket_of(grain task_grain, held timestamptz) RETURNS timestamptz
LANGUAGE sql STABLE
RETURN CASE grain
    WHEN 'year' THEN date_trunc('year', held, 'UTC')
    WHEN 'month' THEN date_trunc('month', held, 'UTC')
    WHEN 'day' THEN date_bin('1 day', held, '2000-01-01 00:00:00+00')
    WHEN 'hour' THEN date_bin('1 hour', held, '2000-01-01 00:00:00+00')
    WHEN 'minute' THEN date_bin('1 minute', held, '2000-01-01 00:00:00+00')
    WHEN 'second' THEN date_bin('1 second', held, '2000-01-01 00:00:00+00')
END;

CREATE FUNCTION bucket_after(grain task_grain, bucket timestamptz) RETURNS timestamptz
LANGUAGE sql STABLE
RETURN (bucket AT TIME ZONE 'UTC' + ('1 ' || grain::text)::interval) AT TIME ZONE 'UTC';

-- A bucket that holds more tasks is split.
CREATE FUNCTION most_in_whole_bucket() RETURNS bigint
LANGUAGE sql IMMUTABLE
RETURN 500;

CREATE TYPE task_bucket AS (service text, grain task_grain, bucket timestamptz);

-- What events change of the counts: 1 for what a task is after an event, -1 for what it was before.
-- An imported task was counted when it was recorded.
--
-- The events of the log from position first on, before position until if that is not NULL, which
-- are not older than since.
CREATE FUNCTION logged_task_changes(first bigint, until bigint, since timestamptz)
RETURNS TABLE (
    created_at timestamptz, status task_status, services_touched text[], intent text, n integer,
    project_id uuid, created_by text
)
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT
        event.created_at, fact.status, fact.services_touched, fact.intent, fact.n,
        event.project_id, event.created_by
    FROM task_events AS event
    CROSS JOIN
        LATERAL (
            VALUES
            (event.status, event.services_touched, event.intent, 1),
            (event.before_status, event.before_services, event.before_intent, -1)
        ) AS fact (status, services_touched, intent, n)
    WHERE
        event.position >= first
        AND (until IS NULL OR event.position < until)
        AND event.at >= since
        AND event.kind <> 'imported'
        AND fact.status IS NOT NULL;
END;

-- The same of the events in the queue, which has none before its floor.
CREATE FUNCTION queued_task_changes(queue_floor bigint)
RETURNS TABLE (
    created_at timestamptz, status task_status, services_touched text[], intent text, n integer,
    project_id uuid, created_by text
)
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT
        event.created_at, fact.status, fact.services_touched, fact.intent, fact.n,
        event.project_id, event.created_by
    FROM task_event_queue AS event
    CROSS JOIN
        LATERAL (
            VALUES
            (event.status, event.services_touched, event.intent, 1),
            (event.before_status, event.before_services, event.before_intent, -1)
        ) AS fact (status, services_touched, intent, n)
    WHERE
        event.event_id >= queue_floor
        AND event.kind <> 'imported'
        AND fact.status IS NOT NULL;
END;

-- The changes that task_counts does not contain yet. state is the row of task_log_state.
CREATE FUNCTION uncounted_task_changes(state task_log_state)
RETURNS TABLE (
    created_at timestamptz, status task_status, services_touched text[], intent text, n integer
)
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT created_at, status, services_touched, intent, n
    FROM logged_task_changes((state).counted, NULL, (state).uncounted_since)
    WHERE (state).counted < (state).size
    UNION ALL
    SELECT created_at, status, services_touched, intent, n
    FROM queued_task_changes((state).queue_floor);
END;

CREATE VIEW task_count_deltas AS
SELECT change.created_at, change.status, change.services_touched, change.intent, change.n
FROM task_log_state AS state
CROSS JOIN LATERAL uncounted_task_changes(state) AS change;

-- Split the buckets that are due, and their parts that hold too many tasks, the fullest first.
--
-- No split starts after split_until. A bucket that is left as it is stays exact and is slower to
-- read; a later fold splits it.
CREATE FUNCTION split_task_counts(split_until timestamptz) RETURNS void
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

-- Count the next events of the log, and split buckets for at most split_seconds.
--
-- most_cells: an event costs two cells, its year and its month, for each of the services before and
-- after it and for all tasks; NULL: count all. At least one event is counted. folded: how many were
-- counted; NULL if another session folds. is_last: whether none was left.
-- is_lazy: if PostgreSQL cannot remove the old versions of the counts, count nothing until so many
-- events wait that it is worth more of them. Each reader walks through all old versions, and adds
-- all events that wait. What keeps old versions is a dump, a standby that is gone, but still has
-- its replication slot, or a long transaction.
-- A session that is killed leaves everything as it was.
-- Raises invalid_transaction_state if it is not the only work of its transaction.
CREATE FUNCTION fold_task_counts(
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
CREATE FUNCTION rebuild_task_counts() RETURNS bigint
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

-- Count the tasks that were recorded without events. Folds count what the events say.
DO $$
DECLARE
    state task_log_state;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('sequence_task_events'));
    SELECT * INTO STRICT state FROM task_log_state;
    PERFORM add_to_task_counts(state, NULL);
    PERFORM split_task_counts('infinity');
END
$$;
