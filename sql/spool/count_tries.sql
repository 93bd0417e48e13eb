-- count_tries: returns how often a record was sent.
SELECT tried
FROM record
WHERE id = :id;
