-- remove_records: removes what the service has accepted.
DELETE FROM record
WHERE id IN (SELECT value FROM json_each(:ids));
