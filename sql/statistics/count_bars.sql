-- count_bars: how many tasks match a filter in each bar, by the counts; one row.
--
-- :service is '' for all tasks. :edges: bar n lies between edges n and n + 1, in the window of the
-- filter. :parts: of all bars, as `audit/history/bar_parts.py` makes them. :by_intent: by intent
-- too; otherwise intents are NULL.
-- bars, statuses, intents, numbers: arrays of the same length, for each number that is not 0.
-- unknown: the numbers of the parts, from 1 on, that the counts do not know; NULL: none. count_rows
-- counts their tasks in the same snapshot.
SELECT
    bars,
    statuses::text[] AS statuses,
    intents,
    numbers,
    unknown
FROM count_bars(
    :service::text,
    :statuses::task_status[],
    :intents::text[],
    :edges::timestamptz[],
    :parts::bar_part[],
    :by_intent::boolean
)
