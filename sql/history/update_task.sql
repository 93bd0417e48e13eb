-- update_task: change an open task if a condition holds; no row where the id is not recorded.
--
-- The function of the same name describes the parameters and the columns.
-- position: text, as in position.sql.
SELECT document, etag, is_done, is_matched, :own_position AS position
FROM
    update_task(
        task => :task_id::uuid,
        change => :change::jsonb,
        project => :project_id::uuid,
        match => :match::text[],
        none_match => :none_match::text[],
        actor => :actor::text,
        request_id => :request_id::text,
        lock_wait => :lock_wait::text
    )
WHERE document IS NOT NULL
