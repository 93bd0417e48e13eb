-- What roles were granted on tables stays, so that a service goes on.
DROP FUNCTION grant_serving;
DROP FUNCTION grant_reading;

GRANT EXECUTE ON FUNCTION
make_task_partition, make_task_partitions, fold_task_counts, move_task_count_deltas,
split_task_counts, rebuild_task_counts,
keep_task_keys, refuse_lone_keys, note_new_tasks, note_changed_tasks,
guard_task_change, refuse_recorded_at, refuse_task_removal, refuse_partition_write
TO PUBLIC; -- noqa: CP02
