"""Time limits for awaitables, with one timer of the event loop for all that share a limit.

`asyncio.timeout` creates a timer for each call, which takes 8 % or more of the time of a request
(decision 34).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Final, TypeVar

log = logging.getLogger("audit")

_CANCELLATIONS: Final = 10
_CANCEL_EVERY_SECONDS: Final = 0.5

_Result = TypeVar("_Result")


class DeadlineExceeded(TimeoutError):
    """An awaitable was cancelled because it exceeded its time limit."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"not done within {seconds:g} seconds")
        self.seconds = seconds


class Deadline:
    """A time limit of `seconds` for each awaitable run under it."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        #: In order of start. All have the same limit, so the first is also the first to exceed it.
        self._running: dict[_Run, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def run(self, work: Awaitable[_Result]) -> _Result:
        """Return the result of `work`; behaves like `asyncio.timeout`.

        Raises:
            DeadlineExceeded: `work` took longer and was cancelled.
        """
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        assert task is not None  # noqa: S101 - only a task can await
        run = _Run(task, task.cancelling(), loop.time() + self.seconds)
        self._running[run] = None
        if self._timer is None:
            self._timer = loop.call_at(run.until, self._cancel_exceeded)
        try:
            return await work
        except asyncio.CancelledError as cancelled:
            # If other code has cancelled the task as well, the cancellation goes on to that code.
            if run.is_exceeded and task.cancelling() <= run.cancelling + 1:
                raise DeadlineExceeded(self.seconds) from cancelled
            raise
        finally:
            del self._running[run]
            del work  # a future refers to its exception, which refers to this frame
            if run.is_exceeded:
                task.uncancel()

    def _cancel_exceeded(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        for run in self._running:
            if run.until > now:
                self._timer = loop.call_at(run.until, self._cancel_exceeded)
                return
            if not run.is_exceeded:
                run.is_exceeded = True
                run.task.cancel()


async def stop(*tasks: asyncio.Task[None]) -> None:
    """Cancel tasks, and wait up to five seconds for them to end.

    A cancellation is repeated, because a task can lose one: `asyncio.wait_for` before Python 3.12,
    which asyncpg uses, drops a cancellation that arrives while its awaitable completes.
    """
    running = set(tasks)
    for _ in range(_CANCELLATIONS):
        for task in running:
            task.cancel()
        _, running = await asyncio.wait(running, timeout=_CANCEL_EVERY_SECONDS)
        if not running:
            return
    log.error("%d background tasks do not end", len(running))


@dataclass(slots=True, eq=False)
class _Run:
    task: asyncio.Task[object]
    #: Cancellations of the task that were pending before this run.
    cancelling: int
    #: On the clock of the event loop.
    until: float
    is_exceeded: bool = False
