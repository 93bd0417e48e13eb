"""The request log: failed and refused requests, and a sample of the others."""

from __future__ import annotations

import logging
import random
from http import HTTPStatus
from typing import Final, TypedDict

from audit.telemetry.throttle import Throttle

LOGGER: Final = logging.getLogger("audit.requests")
#: A response with this status or a higher one reports a failure of the service.
_FAILURE: Final = HTTPStatus.INTERNAL_SERVER_ERROR.value
#: Requests without a valid API key, or without the scope that they need.
REFUSALS: Final = frozenset({HTTPStatus.UNAUTHORIZED.value, HTTPStatus.FORBIDDEN.value})


class Entry(TypedDict):
    """What is logged of a request. It contains no parameter and no part of the body."""

    request_id: str | None
    client: str | None
    """The address that the request came from; see `trusted_proxy`."""
    key_name: str | None
    route: str
    method: str
    status: int
    duration_ms: float
    rows: int | None
    """The number of tasks in the response or in the recorded body, None on other routes."""
    statements: list[str]
    """The files in `sql/` that ran for the request, unless it shared the result of another."""
    reason: str | None
    """Why a request was refused with 401 or 403."""


class RequestLog:
    """Logs failures and refusals, and of all other requests the share `sample`.

    At most 20 failures are logged in a second, and each refused client once a minute.
    """

    def __init__(self, sample: float) -> None:
        self._sample = sample
        self._throttle = Throttle()

    def wants(self, status: int, client: str | None = None) -> bool:
        """Return whether to log a request. `client` is needed only for refusals."""
        if status >= _FAILURE:
            return self._throttle.admit("failures")
        if status in REFUSALS:
            repetitions = self._throttle.repetitions(f"{status} {client}")
            if repetitions is not None and self._throttle.admit("refusals"):
                self._throttle.add_left_out(repetitions)
                return True
        return self._sample > 0 and random.random() < self._sample  # noqa: S311 - no secret

    def log(self, entry: Entry) -> None:
        """Log a request."""
        status = entry["status"]
        extra: dict[str, object] = {"entry": entry}
        level = logging.INFO
        if status >= _FAILURE or status in REFUSALS:
            level = logging.WARNING
            extra["left_out"] = self._throttle.take_left_out()
        LOGGER.log(level, "request", extra=extra)


def as_text(entry: Entry) -> str:
    """Return the line of a request in the text format."""
    optional = {
        "rows": entry["rows"],
        "statements": ",".join(entry["statements"]) or None,
        "key": entry["key_name"],
        "client": entry["client"],
        "request": entry["request_id"],
        "reason": entry["reason"],
    }
    words = (f"{name}={value}" for name, value in optional.items() if value is not None)
    request = f"{entry['method']} {entry['route']} {entry['status']} {entry['duration_ms']} ms"
    return " ".join([request, *words])
