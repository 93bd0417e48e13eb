"""What commands print: lines, JSON and tables on standard output, notes on standard error."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime


def print_line(text: str) -> None:
    """Print a line on standard output, where programs read it."""
    sys.stdout.write(text + "\n")


def print_json(value: object) -> None:
    """Print a value as JSON, with times in the format of RFC 3339."""
    print_line(json.dumps(value, indent=2, default=_as_text))


def _as_text(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print aligned columns. No cell is cut or wrapped, even if the terminal is narrow."""
    from rich.cells import cell_len

    from audit.telemetry.logs import escaped

    table = [list(header), *([escaped(cell) for cell in row] for row in rows)]
    widths = [max(map(cell_len, column)) for column in zip(*table, strict=True)]
    for row in table:
        padded = (
            cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)
        )
        print_line("  ".join(padded).rstrip())


def note(text: str) -> None:
    """Print a line on standard error, for the person who runs the command."""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"audit: {text}\n")
        sys.stderr.flush()


def prepare_streams() -> None:
    """Replace closed standard streams by streams that fail when they are used.

    Otherwise the next file or connection that is opened gets the number of the closed stream.
    """
    # Printing must not fail on a character that the terminal's encoding lacks.
    errors = "backslashreplace"
    for name, mode, unusable in (
        ("stdin", "r", os.O_WRONLY),
        ("stdout", "w", os.O_RDONLY),
        ("stderr", "w", os.O_WRONLY),
    ):
        stream = getattr(sys, name)
        if stream is None:
            number = os.open(os.devnull, unusable)
            setattr(sys, name, os.fdopen(number, mode, closefd=False))
        elif isinstance(stream.buffer, io.RawIOBase) and name == "stdout":
            # With PYTHONUNBUFFERED, Python does not notice that a write took a part of a line only.
            number, encoding = stream.fileno(), stream.encoding
            sys.stdout = os.fdopen(number, "w", 1, encoding, errors, closefd=False)
        elif mode == "w":
            stream.reconfigure(errors=errors)


def discard_output() -> None:
    """Let Python write to /dev/null what it could not write to standard output."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
