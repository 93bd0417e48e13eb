-- bound_services: an upper bound of how many tasks of each service match, the highest first.
--
-- The window is from :window_since to :window_until, and :whole are the whole months and years in
-- it. Services with the bound 0 are left out.
-- service: text. bound: bigint.
SELECT service, bound
FROM
    bound_services(
        :statuses::task_status[],
        :intents::text[],
        :window_since::timestamptz,
        :window_until::timestamptz,
        :whole::bar_part[]
    )
WHERE bound > 0
ORDER BY bound DESC, service COLLATE "C"
