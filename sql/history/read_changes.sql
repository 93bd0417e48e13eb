-- read_changes: which events of tasks a reader has not seen yet; one row.
--
-- The reader has seen the :known_size first events of the log, and the others with an event_id up
-- to :seen_to, except for :gaps. A first reader passes NULL as :known_size.
-- snapshot, clock: as in read_snapshot. server: text, as in server.sql.
-- log_size: how many events the log has. queued: how many have no position, at most 10 * :most + 1.
-- newest_queued: the greatest event_id of these; 0 if there are none.
-- changes: json, an array for each event not seen: event_id, task_id, created_at, project_id,
-- created_by, and status, services_touched, intent after the change, then before. NULL: maybe more
-- than :most. documents: json, an object from the task_id of each to the task as lists show it,
-- without long ones; NULL if there are no events or more than :most_documents.
SELECT
    :snapshot AS snapshot,
    date_trunc('second', now()) AS clock,
    :server AS server,
    log_size,
    queued,
    newest_queued,
    changes,
    documents
FROM
    read_task_changes(
        :known_size::bigint, :seen_to::bigint, :gaps::bigint[], :most::int, :most_documents::int
    )
