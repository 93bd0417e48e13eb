"""A file that holds the position of a reader of the feed."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

import typer

from audit.files import replaceable

_SYNC_EVERY_SECONDS: Final = 1.0


class PositionFile:
    """Holds a position, and is replaced as a whole whenever the position moves.

    The file is synced to the disk once a second. So a process that is killed loses nothing, and a
    power cut loses a second.
    """

    def __init__(self, path: Path) -> None:
        """Keep the position at a path.

        Raises:
            OSError: what is there is not a regular file.
        """
        self._path = replaceable(path)
        self._new = self._path.with_name(f"{self._path.name}.new")
        self._saved: int | None = None
        self._synced_at = 0.0

    def read(self) -> int | None:
        """Return the position; None if there is no file, or if it is empty.

        Raises:
            typer.BadParameter: the file holds something else.
        """
        try:
            text = self._path.read_text("utf-8", "replace").strip()
        except FileNotFoundError:
            return None
        if not text:
            return None
        if not (text.isascii() and text.isdigit()):
            raise typer.BadParameter(f"--position-file: {self._path} does not hold a position")
        self._saved = int(text)
        return self._saved

    def save(self, position: int, *, is_last: bool = False) -> None:
        """Replace the position. `is_last` syncs the file at once."""
        now = time.monotonic()
        is_due = is_last or now - self._synced_at >= _SYNC_EVERY_SECONDS
        if position == self._saved and not is_last:
            return
        with self._new.open("w") as file:
            file.write(f"{position}\n")
            file.flush()
            if is_due:
                os.fsync(file.fileno())
                self._synced_at = now
        self._new.replace(self._path)
        self._saved = position
