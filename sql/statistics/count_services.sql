-- count_services: how many tasks of each service match a filter, by the counts.
--
-- :edges, :parts: of the window, as of one bar. service: text, one of :candidates.
-- numbers, unknown: as in count_bars, for one bar.
SELECT
    each.service,
    counted.numbers,
    counted.unknown
FROM unnest(:candidates::text[]) AS each (service)
CROSS JOIN
    LATERAL count_bars(
        each.service, :statuses::task_status[], :intents::text[], :edges::timestamptz[],
        :parts::bar_part[], FALSE
    ) AS counted
