"""How the log is written: lines for people or JSON, and one for each request that is sampled."""

from __future__ import annotations

import json
import logging
import random
import sys
import time
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Final, TypedDict

from audit.settings import LogFormat

_requests: Final = logging.getLogger("audit.requests")

#: From this status on, a request has failed.
_FAILURES_FROM: Final = HTTPStatus.INTERNAL_SERVER_ERROR.value

#: Lines of a kind in a second, from warnings on.
_MOST_A_SECOND: Final = 20

#: What a terminal or a reader of lines would act on: controls, and what else ends a line.
_ESCAPES: Final = {
    code: f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"  # noqa: PLR2004
    for code in (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029)
} | {ord("\n"): "\\n", ord("\r"): "\\r", ord("\t"): "\\t"}
#: A traceback has lines of its own.
_ESCAPES_IN_LINES: Final = {code: escape for code, escape in _ESCAPES.items() if code != ord("\n")}


class Answered(TypedDict):
    """What is told of a request. No value that it was sent with is among it."""

    request_id: str | None
    key_name: str | None
    route: str
    method: str
    status: int
    duration_ms: float
    rows: int | None
    """Tasks in the answer, or recorded; None: it is not about tasks."""
    statements: list[str]
    """The files in `sql/` that ran for it. What others ran first, it shares."""


def set_up(log_format: LogFormat) -> None:
    """Write everything that is logged in this format, on standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines() if log_format == "json" else _TextLines())
    handler.addFilter(_calm)
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    _requests.setLevel(logging.INFO)


class _Flood:
    """Admits so many warnings of a kind each second, and counts the others.

    Where everything fails at once, writing that down must not take the time of what still works.
    """

    def __init__(self) -> None:
        self._second = 0
        self._seen: Counter[str] = Counter()
        self.left_out = 0

    def admits(self, kind: str) -> bool:
        """Whether one more may be logged now."""
        second = int(time.time())
        if second != self._second:
            self._second = second
            self._seen.clear()
        self._seen[kind] += 1
        if self._seen[kind] > _MOST_A_SECOND:
            self.left_out += 1
            return False
        return True


_flood: Final = _Flood()


def _calm(record: logging.LogRecord) -> bool:
    """Let a record pass, with how many have not before it."""
    if record.levelno >= logging.WARNING:
        # Requests have been admitted already. Other messages are constants with places for values.
        if record.name != _requests.name and not _flood.admits(str(record.msg)):
            return False
        record.left_out, _flood.left_out = _flood.left_out, 0
    return True


def is_told(status: int, sample: float) -> bool:
    """Whether a request is to be logged: failures, and of the others a share of `sample`."""
    if status >= _FAILURES_FROM:
        return _flood.admits(_requests.name)
    return sample > 0 and random.random() < sample  # noqa: S311 - no secret


def tell(answered: Answered) -> None:
    """Log a request."""
    failed = answered["status"] >= _FAILURES_FROM
    level = logging.WARNING if failed else logging.INFO
    _requests.log(level, "request", extra={"answered": answered})


def _time(record: logging.LogRecord) -> str:
    at = datetime.fromtimestamp(record.created, UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class _JsonLines(logging.Formatter):
    """One object a line, of ASCII."""

    def format(self, record: logging.LogRecord) -> str:
        told: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        told |= getattr(record, "answered", {})
        if left_out := getattr(record, "left_out", 0):
            told["left_out"] = left_out
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        return json.dumps(told)


class _TextLines(logging.Formatter):
    """A level and a message; a traceback below it."""

    def format(self, record: logging.LogRecord) -> str:
        answered: Answered | None = getattr(record, "answered", None)
        if answered is None:
            message = record.getMessage()
        else:
            message = f"{_time(record)} {' '.join(_words(answered))}"
        if left_out := getattr(record, "left_out", 0):
            message += f" ({left_out} warnings were left out before this one)"
        line = f"{record.levelname} {message}".translate(_ESCAPES)
        if record.exc_info:
            trace = self.formatException(record.exc_info).translate(_ESCAPES_IN_LINES)
            return f"{line}\n{trace}"
        return line


def _words(answered: Answered) -> Iterable[str]:
    yield f"{answered['method']} {answered['route']} {answered['status']}"
    yield f"{answered['duration_ms']} ms"
    if answered["rows"] is not None:
        yield f"rows={answered['rows']}"
    if answered["statements"]:
        yield f"statements={','.join(answered['statements'])}"
    if answered["key_name"] is not None:
        yield f"key={answered['key_name']}"
    yield f"request={answered['request_id']}"
