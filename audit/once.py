"""Runs a coroutine once for all callers that wait for its result at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")


class Once(Generic[Result]):
    """Shares one run between callers (single flight).

    A caller that is cancelled does not disturb the others. When the last caller is cancelled, the
    run is cancelled too. All callers of a run get its result or its exception, and nothing is kept
    for callers that come later.
    """

    def __init__(self) -> None:
        self._run: _Run[Result] | None = None

    async def result(self, start: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        """Return the result of the run in progress; if there is none, of a new run of `start`."""
        run = self._run
        if run is None or run.task.done():
            run = self._run = _Run(asyncio.create_task(start()))
        run.callers += 1
        try:
            return await asyncio.shield(run.task)
        finally:
            run.callers -= 1
            if run.callers == 0:
                run.task.cancel()
                if self._run is run:
                    self._run = None


@dataclass(slots=True)
class _Run(Generic[Result]):
    task: asyncio.Task[Result]
    callers: int = 0
