-- has_records: returns the oldest and the newest record, and any task that is being executed; NULL
-- for none.
SELECT
    (SELECT min(id) FROM record) AS oldest,
    (SELECT max(id) FROM record) AS newest,
    (SELECT min(task_id) FROM running) AS task;
