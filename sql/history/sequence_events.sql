-- sequence_events: move events from the queue to the log; one row, or none where the server accepts
-- no writes. Not in a transaction block.
--
-- $1 most int  move no more than that
--
-- sequenced: int, how many were moved; NULL where another session does it at the moment.
-- is_last: boolean, whether none was left.
SELECT sequenced, is_last
FROM sequence_task_events($1::int)
WHERE current_setting('transaction_read_only') = 'off'
