"""Signals that come while Python cannot raise a KeyboardInterrupt."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import signal
from audit.commands.signals import StopSignals

class Destroyed:
    def __del__(self):
        {statement}

signals = StopSignals()
signals.install()
Destroyed()
print(signals.received)
"""


def destroyed(statement: str) -> tuple[str, str]:
    """Run the statement in a destructor, and return what was printed."""
    script = SCRIPT.format(statement=statement)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout, done.stderr


def test_a_signal_in_a_destructor_is_silent_and_not_forgotten() -> None:
    assert ("True\n", "") == destroyed("signal.raise_signal(signal.SIGTERM)")


def test_another_failure_of_a_destructor_is_reported() -> None:
    printed, reported = destroyed("raise ValueError('lost')")

    assert "False\n" == printed
    assert "ValueError: lost" in reported
