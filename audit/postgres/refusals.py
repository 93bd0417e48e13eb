"""Refused requests: the value of `Retry-After`, and the rate at which refusals are sent."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Hashable
from typing import Final

#: Requests that come back get this part of the throughput. The smaller it is, the fewer refusals
#: are sent, and the longer a refused client waits.
_RETURNING: Final = 0.25
_LONGEST_RETRY_SECONDS: Final = 10
#: How long after the end of its `Retry-After` a request is recognised.
_GRACE_SECONDS: Final = 2.0

#: A refusal takes a part of a millisecond of the event loop. So this pace leaves most of it to the
#: requests that were accepted.
_REFUSALS_PER_SECOND: Final = 250
#: The number of refusals that are sent at once if none were sent before.
_BURST: Final = 250
_LONGEST_HOLD_SECONDS: Final = 5.0


class Appointments:
    """The times at which refused requests are to come back.

    The appointments follow each other at a part of the throughput, so that the queue has room for
    each request that comes back, although new requests arrive all the time. A request is known by
    something that is the same each time it is sent.
    """

    def __init__(self) -> None:
        #: By request; about in order, because `Retry-After` is in whole seconds.
        self._due: dict[Hashable, float] = {}
        #: The last appointment, before it was rounded up.
        self._last = 0.0

    def make(self, request: Hashable, until_room: float, seconds_per_request: float) -> int:
        """Return the seconds of `Retry-After` for a request.

        `until_room` are the seconds until the queue is short enough, and `seconds_per_request` is
        the inverse of the throughput. A request that comes back too early keeps its appointment.
        """
        now = time.monotonic()
        self._drop_missed(now)
        due = self._due.get(request, now)
        if due > now:
            return math.ceil(due - now)
        self._last = max(now + until_room, self._last + seconds_per_request / _RETURNING)
        self._last = min(self._last, now + _LONGEST_RETRY_SECONDS)
        seconds = min(max(1, math.ceil(self._last - now)), _LONGEST_RETRY_SECONDS)
        self._due.pop(request, None)
        self._due[request] = now + seconds
        return seconds

    def is_due(self, request: Hashable) -> bool:
        """Return whether a request comes back at its time, or soon after it."""
        return self._due.get(request, math.inf) <= time.monotonic()

    def end(self, request: Hashable) -> None:
        """Forget the appointment of a request that was accepted."""
        self._due.pop(request, None)

    def _drop_missed(self, now: float) -> None:
        while self._due:
            request, due = next(iter(self._due.items()))
            if due >= now - _GRACE_SECONDS:
                break
            del self._due[request]


class Pace:
    """Limits the rate of refusals, so that they leave the event loop to the accepted requests.

    Refusals are sent at once. Only if clients ignore `Retry-After`, so that the rate is exceeded,
    they wait for their turn.
    """

    def __init__(self) -> None:
        #: When the next refusal would be sent, if there were no bursts.
        self._next = -math.inf

    async def wait(self) -> None:
        """Wait until the next refusal may be sent."""
        now = time.monotonic()
        latest = now + _LONGEST_HOLD_SECONDS
        self._next = max(self._next, now - _BURST / _REFUSALS_PER_SECOND)
        hold = self._next - now
        self._next = min(self._next + 1 / _REFUSALS_PER_SECOND, latest)
        if hold > 0:
            await asyncio.sleep(hold)
