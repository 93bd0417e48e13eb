"""Wait until a condition is true, with a deadline that only a fault can reach."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

#: A busy machine may take seconds for what takes milliseconds elsewhere.
SECONDS = 60.0


async def until(condition: Callable[[], object], seconds: float = SECONDS) -> float:
    """Let the event loop run until the condition is true; return the seconds that it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, f"still not true after {seconds:g} seconds"
        await asyncio.sleep(0.005)
    return time.monotonic() - began


def wait_until(condition: Callable[[], object], seconds: float = SECONDS) -> None:
    """Block until the condition is true."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, f"still not true after {seconds:g} seconds"
        time.sleep(0.01)
