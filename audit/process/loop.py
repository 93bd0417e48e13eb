"""Runs coroutines on uvloop."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import closing
from typing import TypeVar

import uvloop

_Result = TypeVar("_Result")


def run(main: Coroutine[object, object, _Result]) -> _Result:
    """Run a coroutine on a new event loop, and return its result."""
    with closing(main), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)
