"""The text of every statement of the spool, read from `sql/spool/` once at import."""

from __future__ import annotations

from audit.resources import sql_text

CREATE_TABLES = sql_text("spool/create_tables")
ADD_RECORD = sql_text("spool/add_record")
FIND_UNTRIED_NEW = sql_text("spool/find_untried_new")
REPLACE_BODY = sql_text("spool/replace_body")
ADD_RUNNING = sql_text("spool/add_running")
REMOVE_RUNNING = sql_text("spool/remove_running")
LIST_RUNNING = sql_text("spool/list_running")
MARK_GONE = sql_text("spool/mark_gone")
READ_LEASE = sql_text("spool/read_lease")
TAKE_LEASE = sql_text("spool/take_lease")
RELEASE_LEASE = sql_text("spool/release_lease")
HAS_RECORDS = sql_text("spool/has_records")
NEXT_NEW = sql_text("spool/next_new")
NEXT_CHANGES = sql_text("spool/next_changes")
READ_RECORDS = sql_text("spool/read_records")
MARK_SENT = sql_text("spool/mark_sent")
COUNT_TRIES = sql_text("spool/count_tries")
REMOVE_RECORDS = sql_text("spool/remove_records")
REFUSE_RECORD = sql_text("spool/refuse_record")
LIST_REFUSED = sql_text("spool/list_refused")
RETRY_REFUSED = sql_text("spool/retry_refused")
DROP_REFUSED = sql_text("spool/drop_refused")
MEASURE = sql_text("spool/measure")
