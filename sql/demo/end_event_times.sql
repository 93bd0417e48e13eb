-- end_event_times: remove what begin_event_times made.
DROP FUNCTION pg_temp.set_event_time() CASCADE
