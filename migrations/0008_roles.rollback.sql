-- What roles were granted on tables stays, so that a service goes on.
DROP FUNCTION grant_serving;
DROP FUNCTION grant_reading;

GRANT EXECUTE ON FUNCTION
make_task_partition, make_task_partitions, record_tasks, update_task, update_tasks,
keep_task_keys, refuse_lone_keys, guard_task_change, refuse_recorded_at, refuse_task_removal,
refuse_partition_write, queue_recorded_tasks, queue_changed_tasks, assign_transaction_id,
refuse_event_change, make_event_partition, append_task_log_mark, note_task_timeline,
sequence_task_events,
fold_task_counts, add_to_task_counts, split_task_counts, rebuild_task_counts, save_task_tally
TO PUBLIC; -- noqa: CP02
