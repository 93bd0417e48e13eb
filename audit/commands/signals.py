"""SIGINT and SIGTERM end a command by a KeyboardInterrupt."""

from __future__ import annotations

import signal
import sys
import time
from types import FrameType

_NUMBERS = (signal.SIGINT, signal.SIGTERM)
_SAME_SIGNAL_SECONDS = 1


class StopSignals:
    """Turns SIGINT and SIGTERM into a KeyboardInterrupt, which leaves every block in order.

    So an embedded PostgreSQL stops with its command. This replaces Python's own handler, because
    asyncio would replace that one and then wait for a task that reads standard input.
    """

    def __init__(self) -> None:
        self._last: float | None = None

    @property
    def received(self) -> bool:
        """Whether a signal came. Python loses its KeyboardInterrupt if a destructor runs then."""
        return self._last is not None

    def install(self) -> None:
        """Handle the signals from now on."""
        sys.unraisablehook = _report_unraisable
        for number in _NUMBERS:
            signal.signal(number, self._interrupt)

    def ignore(self) -> None:
        """Ignore the signals from now on."""
        for number in _NUMBERS:
            signal.signal(number, signal.SIG_IGN)

    def _interrupt(self, _number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        # A process manager may send the signal to the process and to its group.
        is_repeated = self._last is not None and now - self._last < _SAME_SIGNAL_SECONDS
        self._last = now
        if not is_repeated:
            raise KeyboardInterrupt


def _report_unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    """Report an exception of a destructor, unless it is our own for a signal."""
    if not isinstance(unraisable.exc_value, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)
