"""Queues for the connections to the database.

Each kind of work has a lane with a fixed number of slots, one for each connection that it may use.
A request without a free slot waits in the queue of its lane. The queue is FIFO for each caller and
takes turns between callers, so a caller with a thousand waiting requests delays another caller's
request by one turn. A request that cannot get a slot within `queue_seconds` is refused at once.

A refused request gets the number of seconds after which a slot is in reach (`Retry-After`), and the
lane keeps that promise: until then it counts the request as waiting, and it recognises the request
when it comes back. Otherwise later requests would take its place, and a client that waits as it was
asked to would be refused again and again.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, Final, NamedTuple

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

#: Expected waits are estimates, so an admitted request may wait this many times `queue_seconds`.
_PATIENCE: Final = 1.5
#: A request that comes back as promised is admitted up to this many times `queue_seconds`.
_LENIENCE: Final = 1.25
#: Retry-After has whole seconds, so promised requests come in bunches of a second's work. The queue
#: has room for one bunch beside the requests without a promise.
_BUNCH_SECONDS: Final = 1.0
#: Requests without a promise are admitted below this many times `queue_seconds` in any case. So
#: clients that do not come back leave no slot without work.
_UNPROMISED: Final = 0.25
#: Retry-After allows for work that takes longer than the work before it.
_CAUTION: Final = 1.1
#: How long after its time a promise is kept.
_GRACE_SECONDS: Final = 2.0
#: Requests that would have to come back later than this get no promise. Clients that do not wait
#: for Retry-After would otherwise make it longer and longer.
_LONGEST_PROMISE_SECONDS: Final = 10.0
_LONGEST_RETRY_SECONDS: Final = 60
#: The service time is a moving average over about this long, and 16 pieces of work at least.
_MEMORY_SECONDS: Final = 2.0
_LEAST_KEPT: Final = 15 / 16
#: Callers with promises before those whose promises have all expired are dropped.
_MOST_PROMISED: Final = 1000


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
        #: How many pieces of work the mean is of, the older ones counted less.
        self._weight = 0.0
        self._mean_seconds = 0.0
        self._ended_at = time.monotonic()
        self._promises: dict[int | None, _Promises] = {}

    @asynccontextmanager
    async def slot(
        self, *, again: bool = False, question: Callable[[], Hashable] | None = None
    ) -> AsyncIterator[None]:
        """Hold a slot, after waiting for one if need be.

        `again` is for a request that had a slot before: its expected wait does not matter.
        `question` returns what takes the place of the caller's; it is called only if the request
        has to wait.

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
            self._average(time.monotonic() - self._running.pop(work))
            self._admit_next()

    def holds_back(self, task: asyncio.Task[Any]) -> bool:
        """Return whether a task still waits for its slot, so that its work has not begun."""
        return task in self._waiting_tasks

    async def _wait(self, own_question: Callable[[], Hashable] | None, *, again: bool) -> object:
        """Return what `_running` has the slot under, once it is this request's turn."""
        caller, question = CALLER.get()
        if own_question is not None:
            question = own_question()
        if not again:
            self._refuse_if_late(caller, question)
        began = time.monotonic()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(caller, deque()).append(future)
        task = asyncio.current_task()
        self._waiting_tasks.add(task)
        try:
            with self._metrics.waiting if self._metrics else nullcontext():
                await self._patience.run(future)
        except (DeadlineExceeded, asyncio.CancelledError) as failure:
            if future.cancelled():
                self._forget(caller, future)
            else:  # the slot came in the same moment
                del self._running[future]
                self._admit_next()
            if isinstance(failure, DeadlineExceeded):
                detail = (
                    f"the database was not free within {self._patience.seconds:g} seconds,"
                    f" {_PATIENCE:g} times queue_seconds"
                )
                seconds = self._expected_wait(caller)
                raise self._promised(caller, question, detail, seconds) from None
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

    def _forget(self, caller: int | None, future: asyncio.Future[None]) -> None:
        futures = self._waiting.get(caller)
        if futures is not None and future in futures:
            futures.remove(future)
            if not futures:
                del self._waiting[caller]

    # --- the expected wait ------------------------------------------------------------------------

    def _average(self, seconds: float) -> None:
        """Let a piece of work that has ended count for the mean, and the earlier ones less."""
        now = time.monotonic()
        kept = max(math.exp((self._ended_at - now) / _MEMORY_SECONDS), _LEAST_KEPT)
        self._ended_at = now
        self._weight = self._weight * kept + 1
        self._mean_seconds += (seconds - self._mean_seconds) / self._weight

    def _expected_wait(self, caller: int | None, more: int = 0) -> float:
        """Return the seconds until a slot is free for one more request of a caller.

        `more` is added to the caller's requests that wait before it.
        """
        if not self._weight or not self._running:
            return 0.0
        own = len(self._waiting.get(caller, ())) + more
        # Each turn of this caller lets every other caller have one.
        others = sum(
            min(len(futures), own + 1) for key, futures in self._waiting.items() if key != caller
        )
        now, mean = time.monotonic(), self._mean_seconds
        # Work that has run for longer than usual is expected to go on for half as long again.
        left = sorted(max(mean, (now - began) / 2) for began in self._running.values())
        work = (own + others + 1) * mean
        for slots in range(1, len(left) + 1):
            work += left[slots - 1] - mean
            wait = work / slots
            # If the next slot is not free before that, the ones before it do all the work.
            if slots == len(left) or wait <= left[slots]:
                break
        return wait

    def _refuse_if_late(self, caller: int | None, question: Hashable) -> None:
        now = time.monotonic()
        promises = self._promises.get(caller)
        due = promises.due(question, now) if promises else None
        limit = self._queue_seconds
        if due is not None and due <= now:
            room = _LENIENCE * limit
        else:
            room = max(_UNPROMISED * limit, limit - _BUNCH_SECONDS)
        if self._expected_wait(caller) > room:
            wait = self._expected_wait(caller, len(promises) if promises else 0)
            detail = (
                f"the expected wait for the database is {wait:.1f} seconds;"
                f" requests wait up to {limit:g} (queue_seconds)"
            )
            if due is not None and due > now:
                raise self._refusal(detail, due - now)
            if wait > limit:
                raise self._promised(caller, question, detail, _CAUTION * wait - limit)
        if promises and due is not None:
            promises.keep(question)

    def _promised(
        self, caller: int | None, question: Hashable, detail: str, seconds: float
    ) -> Unavailable:
        """Return a refusal, and count the request as waiting until it comes back."""
        refusal = self._refusal(detail, seconds)
        assert refusal.retry_after_seconds is not None  # noqa: S101 - `_refusal` sets it
        if seconds <= _LONGEST_PROMISE_SECONDS:
            now = time.monotonic()
            if len(self._promises) >= _MOST_PROMISED:
                self._promises = {
                    key: promises
                    for key, promises in self._promises.items()
                    if promises.are_open(now)
                }
            promises = self._promises.setdefault(caller, _Promises())
            promises.add(question, now + refusal.retry_after_seconds)
        return refusal

    def _refusal(self, detail: str, seconds: float) -> Unavailable:
        if self._metrics:
            self._metrics.refused()
        seconds = min(max(1, math.ceil(seconds)), _LONGEST_RETRY_SECONDS)
        return Unavailable(detail, retry_after_seconds=seconds)


class _Promises:
    """When the refused requests of one caller were asked to come back."""

    def __init__(self) -> None:
        self._due: dict[Hashable, float] = {}
        #: The earliest first; a promise that was kept or made anew since is not in `_due` any more.
        self._order: list[tuple[float, int, Hashable]] = []
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return len(self._due)

    def are_open(self, now: float) -> bool:
        """Return whether any is left."""
        self._expire(now)
        return bool(self._due)

    def due(self, question: Hashable, now: float) -> float | None:
        """Return when the request was asked to come back; None: it was not."""
        self._expire(now)
        return self._due.get(question)

    def add(self, question: Hashable, at: float) -> None:
        """Note that a request was asked to come back."""
        self._due[question] = at
        heapq.heappush(self._order, (at, next(self._numbers), question))

    def keep(self, question: Hashable) -> None:
        """Note that a request came back and is admitted."""
        del self._due[question]

    def _expire(self, now: float) -> None:
        while self._order and self._order[0][0] < now - _GRACE_SECONDS:
            at, _, question = heapq.heappop(self._order)
            if self._due.get(question) == at:
                del self._due[question]
