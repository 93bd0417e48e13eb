-- The table of tasks without its triggers: the same columns, checks and indexes, and the rows of
-- the partitions that are being recorded into.
CREATE TABLE bare (LIKE tasks INCLUDING ALL) PARTITION BY RANGE (created_at);

DO $$
DECLARE
    one record;
BEGIN
    FOR one IN
        SELECT name, since, until FROM task_partitions WHERE until > now() - interval '2 days'
    LOOP
        EXECUTE format(
            'CREATE TABLE %I PARTITION OF bare FOR VALUES FROM (%L) TO (%L)',
            'bare_' || one.name, one.since, one.until
        );
        EXECUTE format(
            'INSERT INTO bare (%1$s) SELECT %1$s FROM %2$I',
            (
                SELECT string_agg(quote_ident(attname), ', ')
                FROM pg_attribute
                WHERE attrelid = 'tasks'::regclass
                    AND attnum > 0 AND NOT attisdropped AND attgenerated = ''
            ),
            one.name
        );
    END LOOP;
END
$$;

ANALYZE bare;
