-- measure: returns how many records wait, since when, and what else the spool holds.
SELECT
    count(*) AS waiting,
    min(made_at) AS oldest_made_at,
    (SELECT count(*) FROM refused) AS refused,
    (SELECT count(*) FROM running) AS running
FROM record;
