"""The exit codes of the command `audit`."""

from __future__ import annotations

import os
from enum import IntEnum


class ExitCode(IntEnum):
    """How a command ended. The help explains each code."""

    NO = 1
    """The watched task failed or was rejected, a list with `--exit-status` is not empty, or a
    verified file differs."""
    USAGE = 2
    DATA = os.EX_DATAERR
    NO_TASK = os.EX_NOINPUT
    UNAVAILABLE = os.EX_UNAVAILABLE
    INPUT_OUTPUT = os.EX_IOERR
    NOT_ALLOWED = os.EX_NOPERM
    CONFIGURATION = os.EX_CONFIG
    TIMEOUT = 124
    """As the command `timeout` ends."""
    INTERRUPTED = 130
    BROKEN_PIPE = 141
    """The code that a shell shows for a program that SIGPIPE ended."""
