-- read_tally: the saved tally of a filter; one row.
--
-- :tally names the filter. since, position, days: as they were saved; NULL if none is saved, or if
-- more than :most events followed. can_save: boolean, whether this session may save a tally.
-- server: text, what the statement ran on.
SELECT
    saved.since,
    saved.position,
    saved.days::text AS days,
    current_setting('transaction_read_only') = 'off'
    AND has_function_privilege(
        'save_task_tally(bytea, timestamptz, bigint, json, bigint)', 'EXECUTE'
    ) AS can_save,
    :server AS server
FROM (VALUES (:tally::bytea)) AS asked (filter)
LEFT JOIN task_tallies AS saved
    ON asked.filter = saved.filter AND saved.position >= task_log_size() - :most::bigint
