-- save_tally: save the tally of a filter for other processes; one row.
--
-- :tally names the filter. Of all tallies, the :most_kept that were saved last are kept.
SELECT
    save_task_tally(
        :tally::bytea, :tallied_since::timestamptz, :position::bigint, :days::json,
        :most_kept::bigint
    ) AS saved
