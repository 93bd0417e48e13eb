"""Limits of time, each kept by one timer of the event loop, however many run under it.

`asyncio.timeout` makes a timer for each; on uvloop that takes a twentieth of a whole short answer.
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


class Late(TimeoutError):
    """It ran into its limit."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"not done within {seconds:g} seconds")
        self.seconds = seconds


class Limit:
    """So many seconds, for each that runs under it."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        #: The first is the first to end.
        self._running: dict[_Run, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def run(self, work: Awaitable[_Result]) -> _Result:
        """Return what comes of it, as under `asyncio.timeout`.

        Raises:
            Late: it took longer, and was cancelled.
        """
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        assert task is not None  # noqa: S101 - only a task can wait
        run = _Run(task, task.cancelling(), loop.time() + self.seconds)
        self._running[run] = None
        if self._timer is None:
            self._timer = loop.call_at(run.until, self._cancel_late)
        try:
            return await work
        except asyncio.CancelledError as cancelled:
            # Where someone else has cancelled it as well, it is theirs.
            if run.is_late and task.cancelling() <= run.cancelling + 1:
                raise Late(self.seconds) from cancelled
            raise
        finally:
            del self._running[run]
            if run.is_late:
                task.uncancel()

    def _cancel_late(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        for run in self._running:
            if run.until > now:
                self._timer = loop.call_at(run.until, self._cancel_late)
                return
            if not run.is_late:
                run.is_late = True
                run.task.cancel()


async def stop(*tasks: asyncio.Task[None]) -> None:
    """Cancel tasks until they have ended, for some seconds at most.

    A task can lose a cancellation: `asyncio.wait_for` before Python 3.12, which asyncpg uses, drops
    one that arrives in the moment in which what it waits for is done.
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
    #: How often others had cancelled it before.
    cancelling: int
    #: By the clock of the loop.
    until: float
    is_late: bool = False
