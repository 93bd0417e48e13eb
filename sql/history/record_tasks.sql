-- record_tasks: record a batch, skipping the ids that are recorded already; one row.
--
-- The function of the same name describes the parameters and the columns.
-- position: text, as in position.sql.
SELECT task_ids, recorded, too_late, are_new, known_ids, known_digests, :own_position AS position
FROM
    record_tasks(
        given => :tasks::json,
        actor => :actor::text,
        request_id => :request_id::text,
        authors => :authors::jsonb,
        lock_wait => :lock_wait::text
    )
