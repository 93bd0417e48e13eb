"""How many requests each key sends a second, counted over all workers."""

from __future__ import annotations

import math
import mmap
import time
from typing import Final

from audit.errors import TooManyRequests

#: Keys with numbers beyond share a count with others.
_SLOTS: Final = 65_536
_BYTES: Final = 8
_ROUNDING_SECONDS: Final = 1e-6


class Rates:
    """So many requests a second for each number, and as many at once; 0: any.

    The generic cell rate algorithm (ITU-T I.371): for each number, when it would have been served
    all it asked for, evenly. It lies in memory that the workers share: make it before they start.
    Two workers at the same instant may each let one pass that only one should; none is lost.
    """

    def __init__(self, per_second: float) -> None:
        self.per_second = per_second
        self._interval = 1 / per_second if per_second else 0.0
        #: As many seconds of requests may come at once.
        self._window = max(1.0, self._interval)
        #: The `RateLimit-Policy` header.
        self.policy = f'"key";q={math.floor(per_second * self._window)};w={math.ceil(self._window)}'
        self._full_after = math.ceil(self._window)
        self._first = self._told(self._window - self._interval)
        self._served_at = memoryview(mmap.mmap(-1, _SLOTS * _BYTES)).cast("d")

    def take(self, number: int | None) -> str | None:
        """Count a request; return its `RateLimit` header. None: it is under no limit.

        Raises:
            TooManyRequests: it is one too many.
        """
        if number is None or not self.per_second:
            return None
        slot = number % _SLOTS
        now = time.monotonic()
        served_at = self._served_at[slot]
        if served_at <= now:  # it has been served all: most are
            self._served_at[slot] = now + self._interval
            return self._first
        served_at += self._interval
        left = self._window - (served_at - now)
        if left < -_ROUNDING_SECONDS:
            wait = max(1, math.ceil(-left))
            raise TooManyRequests(
                f"the rate limit of this key is {self.per_second:g} requests per second",
                retry_after_seconds=wait,
                headers={"RateLimit-Policy": self.policy, "RateLimit": f'"key";r=0;t={wait}'},
            )
        self._served_at[slot] = served_at
        return self._told(left)

    def _told(self, left_seconds: float) -> str:
        left = max(0, int(left_seconds * self.per_second + _ROUNDING_SECONDS))
        return f'"key";r={left};t={self._full_after}'
