"""The rate limit of each key, shared by all workers."""

from __future__ import annotations

import math
import mmap
import time
from typing import Final

from audit.errors import TooManyRequests

#: Keys whose numbers are equal modulo this share one limit.
_SLOTS: Final = 65_536
_BYTES: Final = 8
_ROUNDING_SECONDS: Final = 1e-6


class Rates:
    """A limit of `per_second` requests per second for each key; 0 means unlimited.

    A key may send the requests of one second all at once. This is the generic cell rate algorithm
    (ITU-T I.371). It stores for each key the time at which all its requests would have been served
    at an even rate. The times are in shared memory, so create the object before the workers start.
    Workers do not lock it: two workers that take at the same instant may count one request only.
    """

    def __init__(self, per_second: float) -> None:
        self.per_second = per_second
        self._interval = 1 / per_second if per_second else 0.0
        #: The requests of this many seconds may come at once.
        self._window = max(1.0, self._interval)
        self._policy = (
            f'"key";q={math.floor(per_second * self._window)};w={math.ceil(self._window)}'
        )
        self._full_after = math.ceil(self._window)
        self._served_at = memoryview(mmap.mmap(-1, _SLOTS * _BYTES)).cast("d")

    def take(self, number: int | None) -> dict[str, str]:
        """Count a request and return the headers that report its limit, if there is one.

        Raises:
            TooManyRequests: the request is over the limit.
        """
        if number is None or not self.per_second:
            return {}
        slot = number % _SLOTS
        now = time.monotonic()
        served_at = max(self._served_at[slot], now) + self._interval
        left_seconds = self._window - (served_at - now)
        if left_seconds < -_ROUNDING_SECONDS:
            wait = max(1, math.ceil(-left_seconds))
            raise TooManyRequests(
                f"the rate limit of this key is {self.per_second:g} requests per second",
                retry_after_seconds=wait,
                headers=self._headers(0, wait),
            )
        self._served_at[slot] = served_at
        left = max(0, int(left_seconds * self.per_second + _ROUNDING_SECONDS))
        return self._headers(left, self._full_after)

    def _headers(self, left: int, seconds: int) -> dict[str, str]:
        return {"RateLimit-Policy": self._policy, "RateLimit": f'"key";r={left};t={seconds}'}
