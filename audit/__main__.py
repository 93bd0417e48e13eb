"""`python -m audit` and the command `audit`."""

import os

# The module `signal` makes enumerations first, which takes longer than all else here.
from _signal import SIGINT, signal  # type: ignore[import-not-found]

_EX_INTERRUPTED = 130


def _leave(_number: int, _frame: object) -> None:
    os._exit(_EX_INTERRUPTED)


# What follows takes some tenths of a second, in which there is nothing to clean up.
signal(SIGINT, _leave)

from audit.commands.main import main  # noqa: E402

__all__ = ["main"]

if __name__ == "__main__":
    main()
