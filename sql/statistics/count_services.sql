-- count_services: how many tasks of each service match a filter, by the counts.
--
-- :edges: the two ends of the window. service: text, one of :candidates.
-- numbers, read_since, read_until: as in count_bars, for one bar.
SELECT
    each.service,
    counted.numbers,
    counted.read_since,
    counted.read_until
FROM unnest(:candidates::text[]) AS each (service)
CROSS JOIN
    LATERAL count_bars(
        each.service, :statuses::task_status[], :intents::text[], :edges::timestamptz[], FALSE,
        :most_reads::int
    ) AS counted
