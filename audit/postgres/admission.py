"""Queues for the connections to the database.

Each kind of work has a lane with a fixed number of slots, one for each connection that it may use.
A request without a free slot waits in the queue of its lane. The queue is FIFO for each caller and
takes turns between callers, so a caller with a thousand waiting requests delays another caller's
request by one turn.

A request is refused if its expected wait is over `queue_seconds`. Its `Retry-After` says
when to come back, and the lane recognises the request when it does. The queue has some places for
requests that come back, so a client that waits as it was asked to is rarely refused again.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, Final, NamedTuple, NoReturn

from audit.deadlines import Deadline, DeadlineExceeded
from audit.errors import Unavailable
from audit.telemetry.metrics import Metrics, Queue


class Caller(NamedTuple):
    """Whose request the current work is for."""

    key: int | None
    """`Identity.number`."""
    question: Hashable
    """What a request that is sent again has in common with the first attempt."""


_NOBODY: Final = Caller(None, None)
CALLER: Final = ContextVar("caller", default=_NOBODY)

#: The expected wait is an estimate. A request that was accepted waits up to this many times
#: `queue_seconds`.
_PATIENCE: Final = 1.5
#: A request that comes back is accepted if its expected wait is up to this many times
#: `queue_seconds`.
_LENIENCE: Final = 1.25
#: `Retry-After` is chosen so that requests that come back get this part of the throughput. The
#: smaller it is, the fewer refusals are sent, and the longer a refused client waits.
_RETURNING: Final = 0.5
_LONGEST_RETRY_SECONDS: Final = 10
#: How long after the end of its `Retry-After` a request is recognised.
_GRACE_SECONDS: Final = 2.0
#: A lane sends one refusal in this time, and the others wait for a few seconds at most. So clients
#: that ignore `Retry-After` do not keep the event loop from the requests that were accepted.
_REFUSAL_SECONDS: Final = 0.004
_LONGEST_HOLD_SECONDS: Final = 2.0
#: The expected duration of work is the mean of the last pieces of work.
_REMEMBERED: Final = 32


class Admission:
    """Divides the connections of a pool between the kinds of work.

    Two connections have no lane. The statements that must never wait behind a queue use them: the
    token of responses from memory, readiness, metrics and the upkeep.
    """

    def __init__(
        self, connections: int, queue_seconds: float, metrics: Metrics | None = None
    ) -> None:
        tallying = max(1, connections // 8)
        # Writes that commit at the same time share one flush to disk.
        writing = min(connections, max(2, connections // 3))
        # A pool of fewer than seven is too small to divide, so there the kinds of work share some.
        reading = min(connections, max(2, connections - tallying - writing - 2))
        queues = metrics.queues if metrics else {}
        #: Questions that take milliseconds, and single tasks.
        self.reading = Lane(reading, queue_seconds, queues.get("reading"))
        #: Portions of tallies, each of which takes up to a second.
        self.tallying = Lane(tallying, queue_seconds, queues.get("tallying"))
        self.writing = Lane(writing, queue_seconds, queues.get("writing"))


class Lane:
    """Slots for one kind of work, and the queue of those that wait for one."""

    def __init__(self, slots: int, queue_seconds: float, queue: Queue | None = None) -> None:
        self.slots: Final = slots
        self._queue_seconds = queue_seconds
        self._metrics = queue
        self._patience = Deadline(_PATIENCE * queue_seconds)
        #: By caller. The first caller has the next turn.
        self._waiting: OrderedDict[int | None, deque[asyncio.Future[None]]] = OrderedDict()
        self._waiting_tasks: set[asyncio.Task[Any] | None] = set()
        #: When each piece of work in a slot began.
        self._running: dict[object, float] = {}
        #: The durations of the last pieces of work.
        self._durations: deque[float] = deque(maxlen=_REMEMBERED)
        #: When refused requests are to come back, about in this order.
        self._returns: dict[Caller, float] = {}
        self._next_refusal_at = 0.0

    @asynccontextmanager
    async def slot(self, *, again: bool = False, question: Hashable = None) -> AsyncIterator[None]:
        """Hold a slot, after waiting for one if need be.

        `again` is for a request that had a slot before: its expected wait does not matter.
        `question`, if given, takes the place of the caller's.

        Raises:
            Unavailable: no slot can be had within `queue_seconds`.
        """
        if len(self._running) < self.slots:
            work: object = object()
            self._running[work] = time.monotonic()
            if self._metrics:
                self._metrics.waited(0)
        else:
            work = await self._wait(question, again=again)
        try:
            yield
        finally:
            self._durations.append(time.monotonic() - self._running.pop(work))
            self._admit_next()

    def holds_back(self, task: asyncio.Task[Any]) -> bool:
        """Return whether a task still waits for its slot, so that its work has not begun."""
        return task in self._waiting_tasks

    async def _wait(self, question: Hashable, *, again: bool) -> object:
        """Return what `_running` has the slot under, once it is this request's turn."""
        caller = CALLER.get()
        if question is not None:
            caller = caller._replace(question=question)
        if not again and not self._has_room(caller):
            await self._refuse(caller)
        began = time.monotonic()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(caller.key, deque()).append(future)
        task = asyncio.current_task()
        self._waiting_tasks.add(task)
        try:
            with self._metrics.waiting if self._metrics else nullcontext():
                await self._patience.run(future)
        except (DeadlineExceeded, asyncio.CancelledError) as failure:
            if future.cancelled():
                self._forget(caller.key, future)
            else:  # the slot came in the same moment
                del self._running[future]
                self._admit_next()
            if isinstance(failure, DeadlineExceeded):
                raise self._refusal(
                    caller,
                    f"the database was not free within {self._patience.seconds:g} seconds,"
                    f" {_PATIENCE:g} times queue_seconds",
                ) from None
            raise
        finally:
            self._waiting_tasks.discard(task)
        if self._metrics:
            self._metrics.waited(time.monotonic() - began)
        return future

    def _admit_next(self) -> None:
        """Give free slots to the callers whose turn it is."""
        while self._waiting and len(self._running) < self.slots:
            caller, futures = next(iter(self._waiting.items()))
            future = futures.popleft()
            if futures:
                self._waiting.move_to_end(caller)
            else:
                del self._waiting[caller]
            if not future.done():
                # The slot is taken from now on, not from when the task gets to run.
                self._running[future] = time.monotonic()
                future.set_result(None)

    def _forget(self, key: int | None, future: asyncio.Future[None]) -> None:
        futures = self._waiting.get(key)
        if futures is not None and future in futures:
            futures.remove(future)
            if not futures:
                del self._waiting[key]

    # --- refusals ---------------------------------------------------------------------------------

    def _has_room(self, caller: Caller) -> bool:
        """Return whether a request is accepted."""
        has_returned = self._returns.get(caller, math.inf) <= time.monotonic()
        limit = self._queue_seconds * (_LENIENCE if has_returned else 1)
        if self._expected_wait(caller.key) > limit:
            return False
        self._returns.pop(caller, None)
        return True

    async def _refuse(self, caller: Caller) -> NoReturn:
        detail = (
            f"the expected wait for the database is {self._expected_wait(caller.key):.1f} seconds;"
            f" requests wait up to {self._queue_seconds:g} (queue_seconds)"
        )
        now = time.monotonic()
        hold = max(0.0, self._next_refusal_at - now)
        self._next_refusal_at = now + min(hold + _REFUSAL_SECONDS, _LONGEST_HOLD_SECONDS)
        await asyncio.sleep(hold)
        raise self._refusal(caller, detail)

    def _refusal(self, caller: Caller, detail: str) -> Unavailable:
        """Return a refusal, and note when the request is to come back."""
        if self._metrics:
            self._metrics.refused()
        now = time.monotonic()
        self._drop_returns(now - _GRACE_SECONDS)
        due = self._returns.get(caller, now)
        if due > now:  # the client came back before the end of its Retry-After
            seconds = math.ceil(due - now)
        else:
            seconds = self._retry_after(caller.key)
            self._returns.pop(caller, None)
            self._returns[caller] = now + seconds
        return Unavailable(detail, retry_after_seconds=seconds)

    def _retry_after(self, key: int | None) -> int:
        until_room = self._expected_wait(key) - self._queue_seconds
        until_others_are_served = (
            len(self._returns) * self._mean_seconds() / self.slots / _RETURNING
        )
        seconds = math.ceil(max(until_room, until_others_are_served))
        return min(max(1, seconds), _LONGEST_RETRY_SECONDS)

    def _drop_returns(self, before: float) -> None:
        while self._returns:
            caller, due = next(iter(self._returns.items()))
            if due >= before:
                break
            del self._returns[caller]

    # --- the expected wait ------------------------------------------------------------------------

    def _mean_seconds(self) -> float:
        return sum(self._durations) / len(self._durations) if self._durations else 0.0

    def _expected_wait(self, key: int | None) -> float:
        """Return the seconds until a slot is free for one more request of a caller.

        Running work is expected to go on for as long as it has been running. So the durations of
        earlier work matter only to a request that has others before it, and after an outage a short
        queue is open at once.
        """
        own = len(self._waiting.get(key, ()))
        # Each turn of this caller lets every other caller have one.
        others = sum(
            min(len(futures), own + 1) for other, futures in self._waiting.items() if other != key
        )
        now = time.monotonic()
        work = (own + others) * self._mean_seconds()
        left = sorted(now - began for began in self._running.values())
        wait = 0.0
        for slots, seconds in enumerate(left, 1):
            # A slot that is not free within the wait does none of the work.
            if slots > 1 and seconds > wait:
                break
            work += seconds
            wait = work / slots
        return wait
