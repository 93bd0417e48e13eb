-- vacuum_deltas: give back the space of the deltas that are folded. Not in a transaction.
VACUUM task_count_deltas
