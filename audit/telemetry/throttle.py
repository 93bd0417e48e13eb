"""Keeps the log short when something fails again and again.

- `Recurring` is for work that is repeated. It logs the first failure, then a summary once a minute,
  then the recovery.
- `Throttle` logs a warning with the same text once a minute, with a count, and 20 warnings of one
  kind in a second if their texts differ.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from audit.errors import Problem

log: Final = logging.getLogger("audit")

_MAX_PER_SECOND: Final = 20
_SUMMARY_SECONDS: Final = 60
#: The number of texts that are remembered to recognise repetitions.
_MAX_TEXTS: Final = 1000


class Throttle:
    """Decides which warnings are logged, and counts the others.

    When everything fails at once, logging must not take the time of what still works.
    """

    def __init__(self) -> None:
        self._second = 0
        self._logged: Counter[str] = Counter()
        #: For each text the time when it was last logged and the number of repetitions since then,
        #: in the order of these times.
        self._texts: dict[str, tuple[float, int]] = {}
        self._left_out = 0

    def admit(self, kind: str) -> bool:
        """Return whether another warning of this kind may be logged in this second."""
        second = int(time.time())
        if second != self._second:
            self._second = second
            self._logged.clear()
        self._logged[kind] += 1
        if self._logged[kind] > _MAX_PER_SECOND:
            self._left_out += 1
            return False
        return True

    def repetitions(self, text: str) -> int | None:
        """Return how often this text was left out since it was last logged.

        None means that it must be left out now, too.
        """
        now = time.monotonic()
        logged_at, count = self._texts.get(text, (float("-inf"), 0))
        if now - logged_at < _SUMMARY_SECONDS:
            self._texts[text] = (logged_at, count + 1)
            return None
        self._texts.pop(text, None)
        self._texts[text] = (now, 0)
        self._forget_old(now)
        return count

    def add_left_out(self, count: int) -> None:
        """Count warnings that were left out as repetitions."""
        self._left_out += count

    def take_left_out(self) -> int:
        """Return how many warnings were left out since the last call."""
        left_out, self._left_out = self._left_out, 0
        return left_out

    def _forget_old(self, now: float) -> None:
        while self._texts:
            text, (logged_at, count) = next(iter(self._texts.items()))
            if now - logged_at < 2 * _SUMMARY_SECONDS and len(self._texts) <= _MAX_TEXTS:
                break
            del self._texts[text]
            self._left_out += count


class Recurring:
    """Logs the failures of work that is repeated, such as reading the keys every two seconds."""

    def __init__(self, activity: str) -> None:
        self._activity = activity
        self._failing_since: float | None = None
        self._logged_at = 0.0
        self._failures = 0
        self._failures_since_logged = 0

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Do the work once. A failure is logged and not raised."""
        try:
            yield
        except Problem as problem:
            self.failed(problem.detail)
        except Exception as failure:  # noqa: BLE001 - it is logged
            self.failed(f"{type(failure).__name__}", failure)
        else:
            self.succeeded()

    def failed(self, detail: str, failure: Exception | None = None) -> None:
        """Log a failure if it is the first one, or if the last line is a minute old."""
        now = time.monotonic()
        self._failures += 1
        self._failures_since_logged += 1
        if self._failing_since is None:
            self._failing_since = now
            text = f"{self._activity}: {detail}"
        elif now - self._logged_at >= _SUMMARY_SECONDS:
            seconds = now - self._logged_at
            failures = self._failures_since_logged
            text = f"{self._activity}: {detail} ({failures} failures in {seconds:.0f} s)"
        else:
            return
        self._logged_at, self._failures_since_logged = now, 0
        log.log(logging.ERROR if failure else logging.WARNING, "%s", text, exc_info=failure)

    def succeeded(self) -> None:
        """Log the recovery if the work had failed before."""
        if self._failing_since is not None:
            seconds = time.monotonic() - self._failing_since
            failures = f"{self._failures} failure{'s' if self._failures > 1 else ''}"
            log.warning("%s: back after %.0f s (%s)", self._activity, seconds, failures)
            self._failing_since, self._failures, self._failures_since_logged = None, 0, 0
