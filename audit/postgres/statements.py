"""The text of every statement, read from `sql/` once at import."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Final


def folder(name: str) -> Traversable:
    """Return `sql` or `migrations`: in an installed wheel, or beside the package in a checkout."""
    package = files("audit")
    installed = package / f"_{name}"
    return installed if installed.is_dir() else package / ".." / name


def _text(name: str) -> str:
    return (folder("sql") / f"{name}.sql").read_text(encoding="utf-8")


def _fragment(name: str) -> str:
    """Return a part that statements share, without its header."""
    return re.sub(r"^--.*\n", "", _text(name), flags=re.MULTILINE).strip()


#: A name in a statement, such as `:limit`; in `::text` and `[1:n]` there is none.
_NAME: Final = re.compile(r"(?<![:\w]):([a-z]\w*)")
_FRAGMENTS: Final = {
    ":filter": _fragment("history/filter"),
    ":snapshot": _fragment("counts/snapshot"),
}


#: The names of a statement's parameters by its text, in the order of $1, $2 and so on.
_parameters: Final[dict[str, Sequence[str]]] = {}


def _read(name: str) -> str:
    text = _NAME.sub(lambda found: _FRAGMENTS.get(found[0], found[0]), _text(name))
    parameters = list(dict.fromkeys(_NAME.findall(text)))
    text = _NAME.sub(lambda found: f"${parameters.index(found[1]) + 1}", text)
    _parameters[text] = parameters
    return text


def has_names(text: str) -> bool:
    """Return whether the file of a statement names its parameters."""
    return bool(_parameters[text])


def values_of(text: str, **named: object) -> list[object]:
    """Return the values of a statement's named parameters in their order."""
    return [named[name] for name in _parameters[text]]


def names() -> list[str]:
    """Return the names of all statements: those of their files, without the ending."""
    return list(_names.values())


def name_of(text: str) -> str | None:
    """Return the name of a statement, or None for a text that is not from `sql/`."""
    return _names.get(text)


LIST_TASKS = _read("history/list_tasks")
LOCATE_PAGE = _read("counts/locate_page")
LOCATE_PORTION = _read("counts/locate_portion")
TALLY_DAYS = _read("counts/tally_days")
READ_TOKEN = _read("counts/read_token")
GET_TASK = _read("history/get_task")
RECORD_TASKS = _read("history/record_tasks")
FIND_CONFLICTS = _read("history/find_conflicts")
UPDATE_TASK = _read("history/update_task")
MAKE_PARTITIONS = _read("schema/make_partitions")
MAKE_COMING_PARTITIONS = _read("schema/make_coming_partitions")
FOLD_COUNTS = _read("counts/fold_counts")
VACUUM_DELTAS = _read("counts/vacuum_deltas")
MEASURE_DELTAS = _read("counts/measure_deltas")
CHECK_COUNTS = _read("counts/check_counts")
REBUILD_COUNTS = _read("counts/rebuild_counts")
CREATE_KEY = _read("access/create_key")
LIST_KEYS = _read("access/list_keys")
REVOKE_KEY = _read("access/revoke_key")
GRANT_READING = _read("access/grant_reading")
GRANT_SERVING = _read("access/grant_serving")
LIST_MIGRATIONS = _read("schema/list_migrations")
FIND_MISSING_PARTITIONS = _read("schema/find_missing_partitions")
MEASURE_LOCKS = _read("schema/measure_locks")
CHECK_OWNER = _read("schema/check_owner")
LOCK_MIGRATIONS = _read("schema/lock_migrations")
BEGIN_SESSION = _read("schema/begin_session")
CHECK_SESSION = _read("schema/check_session")

#: The name of each statement by its text.
_names: Final[Mapping[str, str]] = {
    text: name.lower()
    for name, text in list(vars().items())
    if isinstance(text, str) and text in _parameters
}
