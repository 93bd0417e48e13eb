-- add_record: adds a record to the end of the spool.
INSERT INTO record (task_id, kind, body, made_at)
VALUES (:task_id, :kind, :body, :made_at);
