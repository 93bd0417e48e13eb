"""Runs coroutines on uvloop, if it is installed: the service needs it, a client does not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import closing
from typing import TypeVar

_Result = TypeVar("_Result")
_new_event_loop: Callable[[], asyncio.AbstractEventLoop]
try:
    from uvloop import new_event_loop as _new_event_loop
except ModuleNotFoundError:
    _new_event_loop = asyncio.new_event_loop


def run(main: Coroutine[object, object, _Result]) -> _Result:
    """Run a coroutine on a new event loop, and return its result."""
    with closing(main), asyncio.Runner(loop_factory=_new_event_loop) as runner:
        return runner.run(main)
