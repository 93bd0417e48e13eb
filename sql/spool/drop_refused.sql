-- drop_refused: removes records that were refused.
DELETE FROM refused
WHERE task_id IN (SELECT value FROM json_each(:task_ids));
