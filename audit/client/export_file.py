"""The file of an export, its manifest, and the part of a download that was cut off.

While an export is downloaded, it is in `FILE.part`, and `FILE.part.json` says what it is a part of.
When all is there and the hashes hold, it is renamed, and `FILE.manifest.json` is written.
"""

from __future__ import annotations

import csv
import fcntl
import gzip
import hashlib
import io
import json
import os
import shutil
import zlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final
from uuid import UUID

from pydantic import BaseModel

from audit.client.models import ExportManifest
from audit.errors import Problem
from audit.files import replaceable

_PIECE_BYTES: Final = 1024 * 1024


class WrongFile(Problem):
    """A file cannot be resumed or verified."""


class Differs(Exception):
    """A file is not what its manifest says."""


class State(BaseModel):
    """What a part is a part of."""

    params: dict[str, str | list[str]]
    """The parameters of the export."""
    parts: list[dict[str, Any]]
    """The manifests of the parts. Only the service can complete that of the last one."""
    sha256: str | None = None
    """Of the whole records of the part. None if the process that wrote it could not tell."""


@dataclass
class Content:
    """The whole records of a file."""

    header: bytes = b""
    """The first line of CSV."""
    last: bytes = b""
    """The last record."""
    tasks: int = 0
    size: int = 0
    """In bytes."""
    sha256: str = hashlib.sha256().hexdigest()
    has_more: bool = False
    """Whether a part of a record follows."""

    def last_task(self) -> str:
        """Return the id of the task of the last record.

        Raises:
            WrongFile: there is none.
        """
        try:
            if not self.header:
                return str(UUID(json.loads(self.last)["task_id"]))
            text = (self.header + self.last).decode()
            names, cells = csv.reader(io.StringIO(text, newline=""))
            return str(UUID(cells[names.index("task_id")]))
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            raise WrongFile(
                "the last line has no task_id, so the export cannot be resumed: remove the part,"
                " and export again"
            ) from None


def read_content(source: Iterable[bytes], form: str) -> Content:
    """Return what whole records the lines of a file have."""
    found = Content()
    digest = hashlib.sha256()
    lines: list[bytes] = []
    quotes = 0
    has_header = form == "csv"
    for line in source:
        lines.append(line)
        if b"\0" in line:
            break  # no task has one: what was not on the disk when the power failed
        quotes += line.count(b'"') if form == "csv" else 0
        if quotes % 2 or not line.endswith(b"\n"):
            continue  # a quoted cell of CSV may have line breaks
        record = b"".join(lines)
        lines, quotes = [], 0
        digest.update(record)
        found.size += len(record)
        if has_header:
            found.header, has_header = record, False
        else:
            found.tasks += 1
            found.last = record
    found.sha256 = digest.hexdigest()
    found.has_more = bool(lines)
    return found


class ExportFile:
    """A file to export to."""

    def __init__(self, path: Path) -> None:
        """Export to a path.

        Raises:
            OSError: what is there is not a regular file.
        """
        self.path = replaceable(path)
        self.part = _beside(self.path, ".part")
        self.state = _beside(self.path, ".part.json")
        self.manifest = _beside(self.path, ".manifest.json")

    def open_part(self, *, resume: bool) -> IO[bytes]:
        """Open the part for this process alone.

        Raises:
            WrongFile: it has content and is not to be resumed, or another process writes it.
        """
        part = os.fdopen(os.open(self.part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b")
        try:
            self._take(part, resume=resume)
        except BaseException:
            part.close()
            raise
        return part

    def _take(self, part: IO[bytes], *, resume: bool) -> None:
        try:
            fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # If another process has finished in between, what is open is its complete file.
            is_part = os.path.samestat(os.fstat(part.fileno()), self.part.stat())
        except (BlockingIOError, FileNotFoundError):
            is_part = False
        if not is_part:
            raise WrongFile(f"another process writes {self.part}")
        if not resume and os.fstat(part.fileno()).st_size:
            raise WrongFile(f"{self.part} exists: resume it, or remove it")

    def read_state(self) -> State | None:
        """Return what the part is a part of; None if there is none.

        Raises:
            WrongFile: it is not known.
        """
        try:
            return State.model_validate_json(self.state.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError:
            raise WrongFile(f"{self.state} is not valid: remove it and {self.part}") from None

    def write_state(self, state: State) -> None:
        """Keep what the part is a part of, also if the power fails."""
        _write_json(self.state, state.model_dump(mode="json"))

    def discard_part(self) -> None:
        """Remove the part, which has nothing in it."""
        for path in (self.state, self.part):
            with suppress(FileNotFoundError):
                path.unlink()

    def finish(self, part: IO[bytes], manifest: dict[str, Any]) -> None:
        """Make the file of its part, and write the manifest."""
        part.flush()
        os.fsync(part.fileno())
        if self.path.suffix == ".gz":
            packed = _beside(self.path, ".part.gz")
            part.seek(0)
            with packed.open("wb") as target:
                with gzip.GzipFile("", "wb", fileobj=target, mtime=0) as stream:
                    shutil.copyfileobj(part, stream, _PIECE_BYTES)
                target.flush()
                os.fsync(target.fileno())
            packed.replace(self.path)
            self.part.unlink()
        else:
            self.part.replace(self.path)
        _write_json(self.manifest, manifest)
        with suppress(FileNotFoundError):
            self.state.unlink()

    def verify(self) -> ExportManifest:
        """Return the manifest, if the file is what it says.

        Raises:
            WrongFile: there is no manifest.
            Differs: the file is another one.
        """
        try:
            manifest = ExportManifest.model_validate_json(self.manifest.read_bytes())
        except FileNotFoundError:
            raise WrongFile(f"there is no {self.manifest}") from None
        except ValueError:
            raise WrongFile(f"{self.manifest} is not a manifest") from None
        try:
            with self.path.open("rb") as stored:
                is_packed = self.path.suffix == ".gz"
                lines = gzip.GzipFile(fileobj=stored) if is_packed else stored
                found = read_content(lines, manifest.format)
        except (EOFError, zlib.error, gzip.BadGzipFile) as failure:
            raise Differs(f"{self.path} is damaged: {failure}") from None
        if found.has_more:
            raise Differs(f"{self.path} ends with a part of a line")
        for name, actual, expected in (
            ("tasks", found.tasks, manifest.tasks),
            ("bytes", found.size, manifest.bytes),
            ("sha256", found.sha256, manifest.sha256),
        ):
            if actual != expected:
                raise Differs(f"{self.path}: {name} is {actual}, not {expected}")
        return manifest


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    made = _beside(path, ".new")
    with made.open("w", encoding="utf-8") as target:
        json.dump(value, target, ensure_ascii=False, indent=1)
        target.write("\n")
        target.flush()
        os.fsync(target.fileno())
    made.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
