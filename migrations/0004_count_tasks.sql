-- How many tasks there are, by service, time, state and intent, exact at every moment.
--
-- Writers only append to task_count_deltas: no writer waits for another. fold_task_counts moves
-- the deltas into task_counts. A count is the sum of both, in the snapshot of who asks.
--
-- Buckets are as fine as there is need: every service has years and months; a month, day, hour or
-- minute that holds more than 500 of its tasks is split into the next finer buckets. So what a
-- bound of time cuts off a bucket, and must be counted from the rows, is never much more.
--
-- depends: 0003_guard_history

DO $$
BEGIN
    PERFORM set_config('search_path', quote_ident(current_schema()) || ', pg_temp', TRUE);
END
$$;

CREATE TYPE task_grain AS ENUM ('year', 'month', 'day', 'hour', 'minute', 'second');

-- n of the tasks of a service (''; of all tasks) created in a bucket, by state and intent.
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

-- What task_counts does not hold yet: tasks that came to be so (1), or are so no more (-1).
CREATE TABLE task_count_deltas (
    created_at timestamptz NOT NULL,
    status task_status NOT NULL,
    services_touched text[] NOT NULL,
    intent text,
    n smallint NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000);

-- A bucket is split by its tasks less their deltas: while many wait, these must be found by time.
CREATE INDEX task_count_deltas_by_time ON task_count_deltas (created_at);

-- By which fold the tasks of a day were last told to have changed: what was counted of a day since
-- then, and has no deltas, is still so.
CREATE TABLE task_day_changes (
    day timestamptz PRIMARY KEY,
    fold bigint NOT NULL
);

CREATE INDEX task_day_changes_by_fold ON task_day_changes (fold);

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

-- The next finer grain; NULL after 'second'. Of constants only, so that the planner inlines it.
CREATE FUNCTION finer(grain task_grain) RETURNS task_grain
LANGUAGE sql IMMUTABLE
RETURN CASE grain
    WHEN 'year' THEN 'month'::task_grain
    WHEN 'month' THEN 'day'::task_grain
    WHEN 'day' THEN 'hour'::task_grain
    WHEN 'hour' THEN 'minute'::task_grain
    WHEN 'minute' THEN 'second'::task_grain
END;

-- The start of the bucket that holds a time, and that of the bucket after it.
CREATE FUNCTION bucket_of(grain task_grain, held timestamptz) RETURNS timestamptz
LANGUAGE sql STABLE
RETURN date_trunc(grain::text, held, 'UTC');

CREATE FUNCTION bucket_after(grain task_grain, bucket timestamptz) RETURNS timestamptz
LANGUAGE sql STABLE
RETURN (bucket AT TIME ZONE 'UTC' + ('1 ' || grain::text)::interval) AT TIME ZONE 'UTC';

-- A bucket that holds more tasks is split.
CREATE FUNCTION most_in_whole_bucket() RETURNS bigint
LANGUAGE sql IMMUTABLE
RETURN 500;

CREATE TYPE task_bucket AS (service text, grain task_grain, bucket timestamptz);

-- Split those of the buckets that hold too many tasks, and their parts that do.
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

-- Move so many deltas, at most, into task_counts. Returns how many; NULL where another session is
-- at it.
--
-- Call it in a REPEATABLE READ transaction: a bucket is split from the rows of the same snapshot
-- as the deltas. Killed at any point it leaves all as it was.
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

-- The finest bucket of a service that holds a time, as a half-open range.
CREATE FUNCTION count_bucket(
    counted text, held timestamptz, OUT since timestamptz, OUT until timestamptz
)
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    at_grain task_grain := 'month';
BEGIN
    LOOP
        since := bucket_of(at_grain, held);
        EXIT WHEN at_grain = 'second' OR since = held OR NOT EXISTS (
            SELECT
            FROM task_count_splits AS split
            WHERE split.service = counted
                AND split.grain = at_grain
                AND split.bucket = count_bucket.since
        );
        at_grain := finer(at_grain);
    END LOOP;
    until := bucket_after(at_grain, since);
END
$$;

-- The first boundary at or after a time from which counts are kept: the tasks between the two are
-- to be counted from the rows. NULL: NULL.
CREATE FUNCTION count_edge(counted text, held timestamptz) RETURNS timestamptz
LANGUAGE sql STABLE
RETURN (
    SELECT CASE WHEN bucket.since = held THEN held ELSE bucket.until END
    FROM count_bucket(counted, held) AS bucket
);

-- How many tasks were created at or after a boundary that count_edge gave; NULL: ever.
--
-- counted: a service, '': all tasks. statuses, intents: any of them; NULL: any. Returns NULL where
-- the boundary is none of this service's.
CREATE FUNCTION count_tasks_from(
    counted text, statuses task_status[], intents text[], edge timestamptz
) RETURNS bigint
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    edges timestamptz[];
    at_grain task_grain;
    last_edge timestamptz := COALESCE(edge, '-infinity');
BEGIN
    -- From the edge on by seconds to the next minute, by minutes to the next hour, and so on.
    FOREACH at_grain IN ARRAY '{second,minute,hour,day,month,year}'::task_grain[] LOOP
        IF edge IS NOT NULL AND bucket_of(at_grain, last_edge) < last_edge THEN
            IF last_edge = edge AND at_grain <> 'year' AND NOT EXISTS (
                SELECT
                FROM task_count_splits AS split
                WHERE split.service = counted
                    AND split.grain = at_grain
                    AND split.bucket = bucket_of(at_grain, edge)
            ) THEN
                RETURN NULL;
            END IF;
            last_edge := bucket_after(at_grain, bucket_of(at_grain, last_edge));
        END IF;
        edges := edges || last_edge;
    END LOOP;
    RETURN (
        SELECT COALESCE(sum(counts.n), 0)
        FROM unnest(
            '{second,minute,hour,day,month,year}'::task_grain[], edges,
            edges[2:] || 'infinity'::timestamptz
        ) AS part (grain, since, until)
        CROSS JOIN LATERAL (
            SELECT sum(n) AS n
            FROM task_counts
            WHERE service = counted
                AND grain = part.grain
                AND bucket >= part.since
                AND bucket < part.until
                AND (statuses IS NULL OR status = ANY(statuses))
                AND (intents IS NULL OR intent = ANY(intents))
        ) AS counts
        WHERE part.since < part.until
    ) + (
        SELECT COALESCE(sum(n), 0)
        FROM task_count_deltas
        WHERE (edge IS NULL OR created_at >= edge)
            AND (counted = '' OR services_touched @> ARRAY[counted])
            AND (statuses IS NULL OR status = ANY(statuses))
            AND (intents IS NULL OR intent = ANY(intents))
    );
END
$$;

-- The bucket, as fine as there is, that holds the task of a rank, counted from the newest on; no
-- deltas: it is a place to look, not an answer. NULL: there are not so many.
CREATE FUNCTION locate_task(
    counted text, statuses task_status[], intents text[], rank numeric,
    OUT since timestamptz, OUT until timestamptz
)
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    at_grain task_grain := 'year';
    left_over numeric := rank;
    found_bucket timestamptz;
    found_newer numeric;
    low timestamptz := '-infinity';
    high timestamptz := 'infinity';
BEGIN
    LOOP
        SELECT running.bucket, running.n - running.own
        INTO found_bucket, found_newer
        FROM (
            SELECT bucket, sum(n) AS own, sum(sum(n)) OVER (ORDER BY bucket DESC) AS n
            FROM task_counts
            WHERE service = counted
                AND grain = at_grain
                AND bucket >= low
                AND bucket < high
                AND (statuses IS NULL OR status = ANY(statuses))
                AND (intents IS NULL OR intent = ANY(intents))
            GROUP BY bucket
            ORDER BY bucket DESC
        ) AS running
        WHERE running.n >= left_over
        LIMIT 1;
        EXIT WHEN NOT FOUND;
        left_over := left_over - found_newer;
        low := found_bucket;
        high := bucket_after(at_grain, found_bucket);
        since := low;
        until := high;
        EXIT WHEN at_grain = 'second' OR at_grain > 'year' AND NOT EXISTS (
            SELECT
            FROM task_count_splits AS split
            WHERE split.service = counted AND split.grain = at_grain AND split.bucket = low
        );
        at_grain := finer(at_grain);
    END LOOP;
END
$$;

-- Where a page lies: bounds for the planner, between which all its tasks are.
--
-- counted, statuses, intents, since, until: the filter, NULL as in count_tasks_from and unbounded.
-- after_at: where a cursor stands, NULL: none. skipped: tasks before the page. wanted: its tasks.
--
-- since_edge, until_edge: the counts between them are kept, the tasks outside of them are to be
-- counted from the rows; NULL where since or until is. is_counted: whether there is anything
-- between. page_since, page_until: half-open, NULL: no bound. is_sparse: whether fewer than one in
-- a hundred of the tasks between them match: then finding them by the GIN index beats a walk.
CREATE FUNCTION locate_page(
    counted text, statuses task_status[], intents text[], since timestamptz, until timestamptz,
    after_at timestamptz, skipped numeric, wanted int,
    OUT since_edge timestamptz, OUT until_edge timestamptz, OUT is_counted boolean,
    OUT page_since timestamptz, OUT page_until timestamptz, OUT is_sparse boolean
)
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    before_page bigint := 0;
    place_edge timestamptz;
    matching numeric;
    passed numeric;
BEGIN
    since_edge := count_edge(counted, since);
    SELECT bucket.since INTO until_edge FROM count_bucket(counted, until) AS bucket;
    is_counted := COALESCE(since_edge <= until_edge, TRUE);
    IF after_at IS NULL THEN
        place_edge := until_edge;
        SELECT place.until INTO page_until
        FROM locate_task(
            counted, statuses, intents,
            skipped + 1
            + CASE
                WHEN until IS NULL THEN 0
                ELSE count_tasks_from(counted, statuses, intents, count_edge(counted, until))
            END
        ) AS place;
        -- Not so many tasks: an empty page lies nowhere.
        page_until := COALESCE(page_until, '-infinity');
    ELSE
        SELECT bucket.since INTO place_edge FROM count_bucket(counted, after_at) AS bucket;
    END IF;
    IF place_edge IS NOT NULL THEN
        before_page := count_tasks_from(counted, statuses, intents, place_edge);
    END IF;
    SELECT place.since INTO page_since
    FROM locate_task(counted, statuses, intents, before_page + skipped + wanted + 1) AS place;
    IF page_until >= until THEN
        page_until := NULL;
    END IF;
    IF page_since <= since THEN
        page_since := NULL;
    END IF;

    matching := count_tasks_from(counted, statuses, intents, COALESCE(page_since, since_edge));
    passed := count_tasks_from('', NULL, NULL, COALESCE(page_since, count_edge('', since)));
    place_edge := COALESCE(page_until, place_edge);
    IF place_edge IS NOT NULL THEN
        matching := matching - count_tasks_from(counted, statuses, intents, place_edge);
        passed := passed - count_tasks_from('', NULL, NULL, place_edge);
    END IF;
    is_sparse := COALESCE(matching * 100 < passed, FALSE);
END
$$;

-- Count everything anew, while others record. A bucket that was split stays split.
--
-- Call it in a REPEATABLE READ transaction, as fold_task_counts.
CREATE FUNCTION rebuild_task_counts() RETURNS bigint
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

-- What is recorded already is counted now.
DO $$
BEGIN
    PERFORM rebuild_task_counts();
END
$$;
