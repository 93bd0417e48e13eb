-- find_conflicts: of tasks sent again, the ids that are recorded with other content; one row.
--
--  $1 ids     uuid[]
--  $2 digests bytea[]  of the content now sent, in the same order
--
-- conflicts: text[], empty where every one is a true duplicate.
SELECT COALESCE(array_agg(DISTINCT again.task_id::text), '{}') AS conflicts
FROM unnest($1::uuid[], $2::bytea[]) AS again (task_id, digest)
INNER JOIN task_keys USING (task_id)
WHERE task_keys.digest IS DISTINCT FROM again.digest
