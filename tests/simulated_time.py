"""An event loop whose clock jumps to the next timer instead of waiting for it.

A test of waiting times is exact on it, however busy the machine is, and takes no time.
"""

from __future__ import annotations

import asyncio
import functools
import selectors
import time
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec

import pytest

_Parameters = ParamSpec("_Parameters")


def in_simulated_time(
    test: Callable[_Parameters, Coroutine[Any, Any, None]],
) -> Callable[_Parameters, None]:
    """Run a test on such a loop; `time.monotonic` is its clock meanwhile."""

    @functools.wraps(test)
    def run(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> None:
        loop = _Loop()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(time, "monotonic", loop.time)
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                runner.run(test(*args, **kwargs))

    return run


class _Selector(selectors.DefaultSelector):
    seconds = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "nothing is left that could wake the test"
        self.seconds += max(0.0, timeout)
        return super().select(0)


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._simulated = _Selector()
        super().__init__(self._simulated)

    def time(self) -> float:
        return self._simulated.seconds
