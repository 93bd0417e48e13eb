-- exported: the condition that a task is in the part of an export that a statement reads; other
-- files write it as :exported.
--
-- :place is when the tasks of the part were created, from the first time and before the second; a
-- NULL is no limit. Only tasks after the task :after_id, which was created at :after_at, are in it,
-- if these are not NULL. Arrays are cast at each use, as in filter.
(
    ((:place::timestamptz[])[1] IS NULL OR created_at >= (:place::timestamptz[])[1])
    AND ((:place::timestamptz[])[2] IS NULL OR created_at < (:place::timestamptz[])[2])
    AND (
        :after_at::timestamptz IS NULL
        OR ((created_at, task_id) < (:after_at, :after_id::uuid) AND created_at <= :after_at)
    )
)
