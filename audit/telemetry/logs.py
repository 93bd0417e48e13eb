"""How the log is written: text or JSON, without floods, and a line for each sampled request.

Three limits keep the log short when something fails again and again:

- `Recurring`, for work that is repeated: its first failure is logged, then a summary once a
  minute, then its recovery.
- A warning with the same text as an earlier one is logged once a minute, with a count.
- Of warnings with different texts, 20 of one kind are logged in a second.
"""

from __future__ import annotations

import json
import logging
import random
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Final, TextIO, TypedDict

from audit.errors import Problem
from audit.settings import LogFormat

_log: Final = logging.getLogger("audit")
_requests: Final = logging.getLogger("audit.requests")

#: From this status on, a request has failed.
_FAILURES_FROM: Final = HTTPStatus.INTERNAL_SERVER_ERROR.value
#: A request without a valid key, or without the right to what it asks for.
REFUSALS: Final = frozenset({HTTPStatus.UNAUTHORIZED.value, HTTPStatus.FORBIDDEN.value})

#: Lines of a kind in a second, from warnings on.
_MOST_A_SECOND: Final = 20
#: A warning that repeats is logged again after this time, with a count.
_SUMMARY_SECONDS: Final = 60
#: Texts that are remembered to find repetitions.
_MOST_TEXTS: Final = 1000

#: What a terminal or a reader of lines would act on: controls, and what else ends a line.
_ESCAPES: Final = {
    code: f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"  # noqa: PLR2004
    for code in (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029)
} | {ord("\n"): "\\n", ord("\r"): "\\r", ord("\t"): "\\t"}
#: A traceback has lines of its own.
_ESCAPES_IN_LINES: Final = {code: escape for code, escape in _ESCAPES.items() if code != ord("\n")}


def escaped(text: str) -> str:
    """Return a text in which nothing controls a terminal or ends a line."""
    return text.translate(_ESCAPES)


class Answered(TypedDict):
    """What is logged of a request. No value that it was sent with is in it."""

    request_id: str | None
    client: str | None
    """The address that the request came from; see `trusted_proxy`."""
    key_name: str | None
    route: str
    method: str
    status: int
    duration_ms: float
    rows: int | None
    """Tasks in the answer, or recorded; None: it is not about tasks."""
    statements: list[str]
    """The files in `sql/` that ran for it. What others ran first, it shares."""
    reason: str | None
    """Why a request was refused with 401 or 403; None: it was not."""


def set_up(log_format: LogFormat) -> None:
    """Write everything that is logged in this format, on standard error."""
    handler = _StandardError()
    handler.setFormatter(_JsonLines() if log_format == "json" else _TextLines())
    handler.addFilter(_calm)
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    _requests.setLevel(logging.INFO)


class _StandardError(logging.StreamHandler[TextIO]):
    """Writes to what `sys.stderr` is at that moment: a progress bar replaces it to stay below."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr

    def emit(self, record: logging.LogRecord) -> None:
        if sys.stderr is not None:  # it is None in a process that was started without one
            super().emit(record)


class _Flood:
    """Decides which warnings are logged, and counts the others.

    When everything fails at once, logging must not take the time of what still works.
    """

    def __init__(self) -> None:
        self._second = 0
        self._seen: Counter[str] = Counter()
        #: Texts by the time when they were last logged, the oldest first, with the number of
        #: repetitions since.
        self._texts: dict[str, tuple[float, int]] = {}
        self.left_out = 0

    def admits(self, kind: str) -> bool:
        """Whether one more of a kind may be logged in this second."""
        second = int(time.time())
        if second != self._second:
            self._second = second
            self._seen.clear()
        self._seen[kind] += 1
        if self._seen[kind] > _MOST_A_SECOND:
            self.left_out += 1
            return False
        return True

    def repeats(self, text: str) -> int | None:
        """Return how often a text was left out since it was last logged; None: leave it out."""
        now = time.monotonic()
        logged_at, times = self._texts.get(text, (float("-inf"), 0))
        if now - logged_at < _SUMMARY_SECONDS:
            self._texts[text] = (logged_at, times + 1)
            return None
        self._texts.pop(text, None)
        self._texts[text] = (now, 0)
        self._forget(now)
        return times

    def _forget(self, now: float) -> None:
        """Forget texts that no longer repeat; what was left out of them is still counted."""
        while self._texts:
            text, (logged_at, times) = next(iter(self._texts.items()))
            if now - logged_at < 2 * _SUMMARY_SECONDS and len(self._texts) <= _MOST_TEXTS:
                break
            del self._texts[text]
            self.left_out += times


_flood: Final = _Flood()


def _calm(record: logging.LogRecord) -> bool:
    """Let a record pass, with the number of those that were left out before it."""
    if record.levelno >= logging.WARNING:
        # Requests have been admitted already. Other messages are constants with places for values.
        if record.name != _requests.name:
            repeated = _flood.repeats(record.getMessage())
            if repeated is None or not _flood.admits(str(record.msg)):
                return False
            record.repeated = repeated
        record.left_out, _flood.left_out = _flood.left_out, 0
    return True


class Recurring:
    """Logs the failures of work that is repeated, such as reading the keys every two seconds.

    The first failure is logged, then a summary once a minute, then the recovery.
    """

    def __init__(self, doing: str) -> None:
        self._doing = doing
        self._failing_since: float | None = None
        self._logged_at = 0.0
        self._failures = 0
        """Of them, those since the last line."""
        self._all = 0

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Do the work once. A failure is logged and goes no further."""
        try:
            yield
        except Problem as problem:
            self.failed(problem.detail)
        except Exception as failure:  # noqa: BLE001 - it is logged
            self.failed(f"{type(failure).__name__}", failure)
        else:
            self.succeeded()

    def failed(self, detail: str, failure: Exception | None = None) -> None:
        """Log a failure if it is the first, or a minute after the last line."""
        now = time.monotonic()
        self._failures += 1
        self._all += 1
        if self._failing_since is None:
            self._failing_since = now
            text = f"{self._doing}: {detail}"
        elif now - self._logged_at >= _SUMMARY_SECONDS:
            seconds = now - self._logged_at
            text = f"{self._doing}: {detail} ({self._failures} failures in {seconds:.0f} s)"
        else:
            return
        self._logged_at, self._failures = now, 0
        _log.log(logging.ERROR if failure else logging.WARNING, "%s", text, exc_info=failure)

    def succeeded(self) -> None:
        """Log the recovery if the work had failed before."""
        if self._failing_since is not None:
            seconds = time.monotonic() - self._failing_since
            failures = f"{self._all} failure{'s' if self._all > 1 else ''}"
            _log.warning("%s: back after %.0f s (%s)", self._doing, seconds, failures)
            self._failing_since, self._failures, self._all = None, 0, 0


def is_told(status: int, sample: float, client: str | None = None) -> bool:
    """Whether to log a request: failures, refusals, and of the others a share of `sample`.

    A client that is refused again and again is logged once a minute.
    """
    if status >= _FAILURES_FROM:
        return _flood.admits(_requests.name)
    if status in REFUSALS:
        times = _flood.repeats(f"{status} {client}")
        if times is not None and _flood.admits("refusals"):
            _flood.left_out += times
            return True
    return sample > 0 and random.random() < sample  # noqa: S311 - no secret


def tell(answered: Answered) -> None:
    """Log a request."""
    status = answered["status"]
    failed = status >= _FAILURES_FROM or status in REFUSALS
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
        for name in ("repeated", "left_out"):
            if number := getattr(record, name, 0):
                told[name] = number
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        return json.dumps(told)


class _TextLines(logging.Formatter):
    """A time, a level and a message; a traceback below it."""

    def format(self, record: logging.LogRecord) -> str:
        answered: Answered | None = getattr(record, "answered", None)
        message = record.getMessage() if answered is None else " ".join(_words(answered))
        if repeated := getattr(record, "repeated", 0):
            message += f" (repeated {repeated} times since it was last logged)"
        if left_out := getattr(record, "left_out", 0):
            message += f" ({left_out} warnings were left out before this one)"
        line = f"{_time(record)} {record.levelname} {message}".translate(_ESCAPES)
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
    if answered["client"] is not None:
        yield f"client={answered['client']}"
    yield f"request={answered['request_id']}"
    if answered["reason"] is not None:
        yield f"reason={answered['reason']}"
