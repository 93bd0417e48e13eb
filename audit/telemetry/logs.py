"""The log: its text and JSON formats, and the handler that writes it to standard error."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Final, TextIO

from audit.settings import LogFormat
from audit.telemetry import request_log
from audit.telemetry.throttle import Throttle

#: Characters that change the direction of the text around them, so that it reads as another one.
_DIRECTIONS = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
#: Control characters, all other characters that end a line, and those above.
_ESCAPES: Final = {
    code: f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"  # noqa: PLR2004
    for code in (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, *_DIRECTIONS)
} | {ord("\n"): "\\n", ord("\r"): "\\r", ord("\t"): "\\t"}
#: For tracebacks, which have several lines.
_ESCAPES_IN_LINES: Final = {code: escape for code, escape in _ESCAPES.items() if code != ord("\n")}


def escaped(text: str) -> str:
    """Return a text in one line and without control characters."""
    return text.translate(_ESCAPES)


def set_up(log_format: LogFormat) -> None:
    """Write the log to standard error in this format."""
    handler = _StandardError()
    handler.setFormatter(_JsonFormatter() if log_format == "json" else _TextFormatter())
    handler.addFilter(_Throttling())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    request_log.LOGGER.setLevel(logging.INFO)


class _StandardError(logging.StreamHandler[TextIO]):
    """Writes to the current `sys.stderr`, which a progress bar replaces while it is shown."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr

    def emit(self, record: logging.LogRecord) -> None:
        if sys.stderr is not None:  # it is None if the process was started without one
            super().emit(record)


class _Throttling(logging.Filter):
    """Leaves out warnings that the throttle does not admit, and adds counts to the others."""

    def __init__(self) -> None:
        super().__init__()
        self._throttle = Throttle()

    def filter(self, record: logging.LogRecord) -> bool:
        # `RequestLog` throttles its own warnings.
        if record.levelno < logging.WARNING or record.name == request_log.LOGGER.name:
            return True
        repeated = self._throttle.repetitions(record.getMessage())
        # The message without its arguments is the kind of the warning.
        if repeated is None or not self._throttle.admit(str(record.msg)):
            return False
        record.repeated = repeated
        record.left_out = self._throttle.take_left_out()
        return True


def _time(record: logging.LogRecord) -> str:
    at = datetime.fromtimestamp(record.created, UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class _JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object in one line of ASCII."""

    def format(self, record: logging.LogRecord) -> str:
        members: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        members |= getattr(record, "entry", {})
        for name in ("repeated", "left_out"):
            if number := getattr(record, name, 0):
                members[name] = number
        if record.exc_info:
            members["exception"] = self.formatException(record.exc_info)
        return json.dumps(members)


class _TextFormatter(logging.Formatter):
    """Formats a record as a line of time, level and message, with a traceback below it."""

    def format(self, record: logging.LogRecord) -> str:
        entry: request_log.Entry | None = getattr(record, "entry", None)
        message = record.getMessage() if entry is None else request_log.as_text(entry)
        if repeated := getattr(record, "repeated", 0):
            message += f" (repeated {repeated} times since it was last logged)"
        if left_out := getattr(record, "left_out", 0):
            message += f" ({left_out} warnings were left out before this one)"
        line = escaped(f"{_time(record)} {record.levelname} {message}")
        if record.exc_info:
            trace = self.formatException(record.exc_info).translate(_ESCAPES_IN_LINES)
            return f"{line}\n{trace}"
        return line
