"""The text of every statement, read from `sql/` once at import."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Final, Self

from audit.resources import sql_text


def _fragment(name: str) -> str:
    """Return a part that statements share, without its header."""
    return re.sub(r"^--.*\n", "", sql_text(name), flags=re.MULTILINE).strip()


#: A name in a statement, such as `:limit`; in `::text` and `[1:n]` there is none.
_NAME: Final = re.compile(r"(?<![:\w]):([a-z]\w*)")
_FRAGMENTS: Final = {
    ":filter": _fragment("history/filter"),
    ":snapshot": _fragment("counts/snapshot"),
    ":server": _fragment("counts/server"),
    ":tables": _fragment("history/tables"),
    ":own_position": _fragment("history/position"),
    ":exported": _fragment("history/exported"),
}


class Statement(str):
    """The text of a statement, with its name and the names of its parameters."""

    __slots__ = ("name", "parameters", "text")

    name: str
    """The name of the file, without its folder and ending."""
    parameters: tuple[str, ...]
    """The names of $1, $2 and so on. It is empty if the file itself numbers its parameters."""
    text: str
    """The statement as a plain `str`, because asyncpg refuses a subclass."""

    def __new__(cls, path: str, **fragments: str) -> Self:
        """Read the file at this path in `sql/`, given without its ending.

        `fragments` are further parts of the statement, by the names that stand for them.
        """
        parts = _FRAGMENTS | {f":{name}": part for name, part in fragments.items()}
        named = _NAME.sub(lambda found: parts.get(found[0], found[0]), sql_text(path))
        parameters = tuple(dict.fromkeys(_NAME.findall(named)))
        text = _NAME.sub(lambda found: f"${parameters.index(found[1]) + 1}", named)
        statement = super().__new__(cls, text)
        statement.name, statement.parameters = path.rpartition("/")[2], parameters
        statement.text = text
        return statement

    def values(self, named: Mapping[str, object]) -> list[object]:
        """Return the values of the named parameters in their order."""
        return [named[name] for name in self.parameters]


LIST_TASKS = Statement("history/list_tasks")
LOCATE_PAGE = Statement("counts/locate_page")
LOCATE_PORTION = Statement("counts/locate_portion")
TALLY_DAYS = Statement("counts/tally_days")
TALLY_CHANGES = Statement("counts/tally_changes")
READ_TALLY = Statement("counts/read_tally")
LOCK_TALLY = Statement("counts/lock_tally")
SAVE_TALLY = Statement("counts/save_tally")
READ_SNAPSHOT = Statement("history/read_snapshot")
READ_CHANGES = Statement("history/read_changes")
READ_REPLAYED = Statement("history/read_replayed")
READ_POSITION = Statement("history/read_position")
FIND_POSITIONS = Statement("history/find_positions")
READ_FEED = Statement("history/read_feed")
READ_LOG_HEAD = Statement("history/read_log_head")
READ_DEPARTURE = Statement("history/read_departure")
GET_TASK = Statement("history/get_task")
GET_HISTORY = Statement("history/get_history")
GET_VERSIONS = Statement("history/get_versions")
LOCK_PORTION = Statement("history/lock_portion")
IMPORT_TASKS = Statement("history/import_tasks")
MEASURE_REPLICATION = Statement("history/measure_replication")
MEASURE_LOG = Statement("history/measure_log")
OPEN_EXPORT = Statement("history/open_export")
MEASURE_EXPORT = Statement("history/measure_export")
EXPORT_NDJSON = Statement("history/export_ndjson")
EXPORT_CSV = Statement("history/export_csv", shown="*")
RECORD_EXPORT = Statement("history/record_export")
GET_EXPORT = Statement("history/get_export")
LIST_EXPORTS = Statement("history/list_exports")
RECORD_TASKS = Statement("history/record_tasks")
FIND_CONFLICTS = Statement("history/find_conflicts")
UPDATE_TASK = Statement("history/update_task")
SEQUENCE_EVENTS = Statement("history/sequence_events")
UPDATE_TASKS = Statement("history/update_tasks")
MAKE_PARTITIONS = Statement("schema/make_partitions")
MAKE_COMING_PARTITIONS = Statement("schema/make_coming_partitions")
FOLD_COUNTS = Statement("counts/fold_counts")
MEASURE_DELTAS = Statement("counts/measure_deltas")
CHECK_COUNTS = Statement("counts/check_counts")
REBUILD_COUNTS = Statement("counts/rebuild_counts")
CREATE_KEY = Statement("access/create_key")
LIST_KEYS = Statement("access/list_keys")
REVOKE_KEY = Statement("access/revoke_key")
GRANT_READING = Statement("access/grant_reading")
GRANT_SERVING = Statement("access/grant_serving")
LIST_MIGRATIONS = Statement("schema/list_migrations")
FIND_MISSING_PARTITIONS = Statement("schema/find_missing_partitions")
MEASURE_LOCKS = Statement("schema/measure_locks")
CHECK_OWNER = Statement("schema/check_owner")
LOCK_MIGRATIONS = Statement("schema/lock_migrations")
COUNT_BARS = Statement("statistics/count_bars")
COUNT_ROWS = Statement("statistics/count_rows")
COUNT_SPANS = Statement("statistics/count_spans")
OUTERMOST_BUCKET = Statement("statistics/outermost_bucket")
MEASURE_ROWS = Statement("statistics/measure_rows")
BOUND_SERVICES = Statement("statistics/bound_services")
COUNT_SERVICES = Statement("statistics/count_services")
GROUP_SERVICES = Statement("statistics/group_services")
GROUP_ROWS = Statement("statistics/group_rows")
MEASURE_DURATIONS = Statement("statistics/measure_durations")
BEGIN_SESSION = Statement("schema/begin_session")
CHECK_SESSION = Statement("schema/check_session")
READ_ROLE = Statement("schema/read_role")
END_STATEMENT = Statement("schema/end_statement")
BEGIN_EVENT_TIMES = Statement("demo/begin_event_times")
END_EVENT_TIMES = Statement("demo/end_event_times")


@cache
def export_csv(columns: tuple[str, ...]) -> Statement:
    """Return `EXPORT_CSV` with these of its columns, in this order."""
    return Statement("history/export_csv", shown=", ".join(columns))


ALL: Final = tuple(value for value in vars().values() if isinstance(value, Statement))
NAMES: Final = [statement.name for statement in ALL]
