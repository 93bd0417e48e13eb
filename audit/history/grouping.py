"""Joins small writes that wait at the same time into one statement and one commit."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

import asyncpg

from audit.errors import TimedOut, Unavailable
from audit.postgres.admission import GroupLane
from audit.postgres.failures import CONFLICTS, StaleSchema
from audit.postgres.pool import add_statements, note_statements

#: Another transaction is in the way of a request.
_IN_THE_WAY: Final = (asyncpg.LockNotAvailableError, *CONFLICTS)

Request = TypeVar("Request")
Result = TypeVar("Result")


class Groups(Generic[Request, Result]):
    """Serves requests in groups, one group after the other.

    A group takes the requests that arrived while the group before it was running. `serve` returns
    the result of each request, or None for a request that has to be served alone. If `serve` fails
    because of a request, nothing is written, and each request of the group has to be served alone.
    A request that is cancelled does not disturb the others.
    """

    def __init__(
        self,
        lane: GroupLane,
        serve: Callable[[Sequence[Request]], Awaitable[Sequence[Result | None]]],
    ) -> None:
        self._lane = lane
        self._serve = serve
        self._next = _Group[Request, Result]()
        self._running: set[asyncio.Task[None]] = set()

    async def result(self, request: Request, *, retry_key: Hashable) -> Result | None:
        """Return the result of a request, or None if it has to be served alone.

        `retry_key` is as in `Lane.slot`.

        Raises:
            Unavailable: the queue is too long, or the database does not answer.
            TimedOut: the group took too long.
        """
        async with self._lane.slot(retry_key=retry_key):
            group = self._next
            if not group.requests:
                # The lane wakes all requests of a group in the same iteration of the event loop.
                asyncio.get_running_loop().call_soon(self._start)
            try:
                return await group.add(request)
            finally:
                add_statements(group.statements)

    def _start(self) -> None:
        group, self._next = self._next, _Group()
        task = asyncio.create_task(self._run(group))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _run(self, group: _Group[Request, Result]) -> None:
        group.statements = note_statements()
        try:
            results = await self._serve(group.requests)
        except Exception as failure:  # noqa: BLE001 - it is raised for each request it concerns
            if _concerns_all(failure):
                group.fail(failure)
            else:
                group.finish([None] * len(group.requests))
        except asyncio.CancelledError:
            group.cancel()
            raise
        else:
            group.finish(results)


def _concerns_all(failure: Exception) -> bool:
    """Return whether each request of a group would fail like this if it was served alone."""
    if isinstance(failure, StaleSchema) or isinstance(failure.__cause__, _IN_THE_WAY):
        return False
    return isinstance(failure, Unavailable | TimedOut)


@dataclass(slots=True)
class _Group(Generic[Request, Result]):
    requests: list[Request] = field(default_factory=list)
    statements: set[str] = field(default_factory=set)
    """The names of the statements that were run for the group."""
    _futures: list[asyncio.Future[Result | None]] = field(default_factory=list)

    def add(self, request: Request) -> asyncio.Future[Result | None]:
        future: asyncio.Future[Result | None] = asyncio.get_running_loop().create_future()
        self.requests.append(request)
        self._futures.append(future)
        return future

    def finish(self, results: Sequence[Result | None]) -> None:
        for future, result in zip(self._futures, results, strict=True):
            if not future.done():
                future.set_result(result)

    def fail(self, failure: Exception) -> None:
        for future in self._futures:
            if not future.done():
                future.set_exception(failure)

    def cancel(self) -> None:
        for future in self._futures:
            future.cancel()
