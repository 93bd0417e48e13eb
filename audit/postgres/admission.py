"""Queues for the connections to the database.

Each kind of work has a lane with a fixed number of slots, one for each connection that it may use.
A request without a free slot waits in the queue of its lane. The queue is FIFO for each caller and
takes turns between callers, so a caller with a thousand waiting requests delays another caller's
request by one turn.

A request is refused if its expected wait is over `queue_seconds`. The expected wait is the number
of requests that have their turn before it, divided by the recent throughput of the lane.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Hashable, Sequence
from contextlib import asynccontextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, Final, NamedTuple

from audit.deadlines import Deadline, DeadlineExceeded
from audit.errors import Unavailable
from audit.postgres.refusals import Appointments, Pace
from audit.telemetry.metrics import Metrics, Queue


class Caller(NamedTuple):
    """Whose request the current work is for."""

    key: int | None
    """`Identity.number`."""
    retry_key: Hashable
    """Equal for a request and for the same request sent again."""


_NOBODY: Final = Caller(None, None)
CALLER: Final = ContextVar("caller", default=_NOBODY)
#: The key of the requests that had a slot before. They take turns with the callers.
_AGAIN: Final = "again"

#: The expected wait is an estimate. A request that was accepted waits longer than `queue_seconds`
#: by up to this part of it, and by up to a second.
_PATIENCE: Final = 0.5
_LONGEST_PATIENCE_SECONDS: Final = 1.0
#: A request that comes back is accepted if its expected wait is over `queue_seconds` by up to this
#: part of that.
_LENIENCE: Final = 0.5
#: Throughput is measured over this time, or over this number of pieces of work if they took longer.
_REMEMBERED_SECONDS: Final = 2.0
_REMEMBERED: Final = 32
#: The largest number of requests in a group. Their statement takes some milliseconds.
_MOST_IN_GROUP: Final = 64


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
        writing = min(connections, max(2, connections // 3 - 2))
        # A pool of fewer than nine is too small to divide, so there the kinds of work share some.
        reading = min(connections, max(2, connections - tallying - writing - 4))
        queues = metrics.queues if metrics else {}
        #: Questions that take milliseconds, and single tasks.
        self.reading = Lane(reading, queue_seconds, queues.get("reading"))
        #: Portions of tallies, each of which takes up to a second.
        self.tallying = Lane(tallying, queue_seconds, queues.get("tallying"))
        self.writing = Lane(writing, queue_seconds, queues.get("writing"))
        #: Small writes. Each group has one connection, of those for writing.
        self.recording_groups = GroupLane(_MOST_IN_GROUP, queue_seconds, queues.get("writing"))
        self.changing_groups = GroupLane(_MOST_IN_GROUP, queue_seconds, queues.get("writing"))

    def writes_hold_back(self, task: asyncio.Task[Any]) -> bool:
        """Return whether a task that writes still waits for its slot."""
        lanes = (self.writing, self.recording_groups, self.changing_groups)
        return any(lane.holds_back(task) for lane in lanes)


class Lane:
    """Slots for one kind of work, and the queue of those that wait for one."""

    def __init__(self, slots: int, queue_seconds: float, queue: Queue | None = None) -> None:
        self.slots: Final = slots
        self._queue_seconds = queue_seconds
        self._metrics = queue
        patience = min(_PATIENCE * queue_seconds, _LONGEST_PATIENCE_SECONDS)
        self._queue_seconds_of_returns = queue_seconds + _LENIENCE * patience
        self._deadline = Deadline(queue_seconds + patience)
        #: By the key of the caller, or `_AGAIN`. The first has the next turn.
        self._waiting: OrderedDict[Hashable, deque[asyncio.Future[None]]] = OrderedDict()
        self._waiting_tasks: set[asyncio.Task[Any] | None] = set()
        #: When each piece of work in a slot began.
        self._running: dict[object, float] = {}
        self._durations = _Durations()
        self._appointments = Appointments()
        self._pace = Pace()

    @asynccontextmanager
    async def slot(self, *, again: bool = False, retry_key: Hashable = None) -> AsyncIterator[None]:
        """Hold a slot, after waiting for one if need be.

        `again` is for a request that had a slot before. It is never refused on arrival, and waits
        only for other such requests and a turn of each caller. `retry_key`, if given, takes the
        place of the caller's.

        Raises:
            Unavailable: no slot can be had within `queue_seconds`.
        """
        if self._free_slots():
            work: object = object()
            self._running[work] = time.monotonic()
            if self._metrics:
                self._metrics.waited(0)
        else:
            caller = CALLER.get()
            if retry_key is not None:
                caller = caller._replace(retry_key=retry_key)
            if not again and not self._accepts(caller):
                detail = (
                    f"the expected wait for the database is {self._expected_wait(caller):.1f}"
                    f" seconds; requests wait up to {self._queue_seconds:g} (queue_seconds)"
                )
                await self._pace.wait()
                raise self._refusal(caller, detail)
            work = await self._wait(caller, _AGAIN if again else caller.key)
        try:
            yield
        finally:
            self._durations.add(time.monotonic() - self._running.pop(work))
            self._admit_next()

    def holds_back(self, task: asyncio.Task[Any]) -> bool:
        """Return whether a task still waits for its slot, so that its work has not begun."""
        return task in self._waiting_tasks

    async def _wait(self, caller: Caller, key: Hashable) -> object:
        """Return what `_running` has the slot under, once it is this request's turn."""
        began = time.monotonic()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, deque()).append(future)
        task = asyncio.current_task()
        self._waiting_tasks.add(task)
        try:
            with self._metrics.waiting if self._metrics else nullcontext():
                await self._deadline.run(future)
        except (DeadlineExceeded, asyncio.CancelledError) as failure:
            if future.cancelled():
                self._leave(key, future)
            else:  # the slot came in the same moment
                del self._running[future]
                self._admit_next()
            if isinstance(failure, DeadlineExceeded):
                raise self._refusal(
                    caller,
                    f"the database was not free within {self._deadline.seconds:g} seconds;"
                    f" requests wait up to {self._queue_seconds:g} (queue_seconds), and a little"
                    " longer if they were expected to have their turn by then",
                ) from None
            raise
        finally:
            self._waiting_tasks.discard(task)
        if self._metrics:
            self._metrics.waited(time.monotonic() - began)
        return future

    def _admit_next(self) -> None:
        """Give free slots to the callers whose turn it is."""
        free = self._free_slots()
        while self._waiting and free:
            key, futures = next(iter(self._waiting.items()))
            future = futures.popleft()
            if futures:
                self._waiting.move_to_end(key)
            else:
                del self._waiting[key]
            if not future.done():
                # The slot is taken from now on, not from when the task gets to run.
                self._running[future] = time.monotonic()
                future.set_result(None)
                free -= 1

    def _free_slots(self) -> int:
        return self.slots - len(self._running)

    def _leave(self, key: Hashable, future: asyncio.Future[None]) -> None:
        """Take a cancelled request out of the queue, unless `_admit_next` has done so."""
        futures = self._waiting.get(key)
        if futures is not None and future in futures:
            futures.remove(future)
            if not futures:
                del self._waiting[key]

    def _accepts(self, caller: Caller) -> bool:
        """Return whether a request may wait in the queue."""
        has_returned = self._appointments.is_due(caller)
        limit = self._queue_seconds_of_returns if has_returned else self._queue_seconds
        if self._expected_wait(caller) > limit:
            return False
        self._appointments.end(caller)
        return True

    def _refusal(self, caller: Caller, detail: str) -> Unavailable:
        """Return a refusal with the time when the request is to come back."""
        if self._metrics:
            self._metrics.refused()
        until_room = self._expected_wait(caller) - self._queue_seconds
        seconds_per_request = self._durations.mean() / self.slots
        seconds = self._appointments.make(caller, until_room, seconds_per_request)
        return Unavailable(detail, retry_after_seconds=seconds)

    def _expected_wait(self, caller: Caller) -> float:
        """Return the seconds until a slot is free for one more request of a caller."""
        own = len(self._waiting.get(caller.key, ()))
        # Each turn of this caller lets every other caller have one.
        others = sum(
            min(len(futures), own + 1)
            for key, futures in self._waiting.items()
            if key != caller.key
        )
        now = time.monotonic()
        ages = sorted(now - began for began in self._running.values())
        return self._seconds_until_free(ages, own + others)

    def _seconds_until_free(self, ages: Sequence[float], queued: int) -> float:
        """Return the seconds until one of the slots is free and the queue before it is empty.

        `ages` are the seconds for which the work in each slot has been running, in ascending order.
        It is expected to go on for as long again. So the durations of earlier work matter only to a
        request that has others before it, and after an outage a short queue is open at once.
        `queued` is the number of requests in the queue.
        """
        work = queued * self._durations.mean()
        wait = 0.0
        for slots, age in enumerate(ages, 1):
            # A slot that is not free within the wait does none of the work.
            if slots > 1 and age > wait:
                break
            work += age
            wait = work / slots
        return wait


class GroupLane(Lane):
    """A lane for requests that are served together, by one statement.

    When all requests of a group are done, those that wait form the next group, up to `slots` of
    them. No request waits for others to arrive. If none is running, the next one begins at once.
    """

    def _free_slots(self) -> int:
        return 0 if self._running else self.slots

    def _seconds_until_free(self, ages: Sequence[float], queued: int) -> float:
        return queued // self.slots * self._durations.mean() + max(ages, default=0.0)


class _Durations:
    """The durations of recent work."""

    def __init__(self) -> None:
        #: When each piece of work ended, and its duration.
        self._ended: deque[tuple[float, float]] = deque()
        self._sum = 0.0

    def add(self, seconds: float) -> None:
        now = time.monotonic()
        self._ended.append((now, seconds))
        self._sum += seconds
        while len(self._ended) > _REMEMBERED and self._ended[0][0] < now - _REMEMBERED_SECONDS:
            self._sum -= self._ended.popleft()[1]

    def mean(self) -> float:
        return self._sum / len(self._ended) if self._ended else 0.0
