-- vacuum_deltas: give back the space of the deltas that are folded. Not in a transaction.
--
-- INDEX_CLEANUP: while few pages have dead rows, VACUUM would leave them as they are, and what is
-- dead at the end of the table keeps all of it from being given back.
VACUUM (INDEX_CLEANUP ON) task_count_deltas -- noqa: CP02
