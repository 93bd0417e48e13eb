"""An export on its way into a file: what to ask for, what came, and whether that is all of it.

The clients send what `call` asks for, and pass the response to `begin` and `write`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from audit.client import calls
from audit.client.export_file import Content, ExportFile, State, WrongFile, read_content
from audit.client.models import ExportManifest
from audit.client.wire import Call, Lost, Reply
from audit.errors import Unavailable

#: The client gives up if it receives nothing for this long.
SILENT_SECONDS: Final = 120
_OK: Final = 200
#: Parameters whose values may differ when an export is resumed.
_TIMES: Final = frozenset({"since", "until", "last", "days"})
#: These describe a window that ends when the export begins.
_MOVING: Final = frozenset({"last", "days"})


class Download:
    """Writes an export to a file, or the rest of one to its part."""

    #: What to ask for, once the part is open.
    call: Call[None]

    def __init__(self, path: Path, params: Mapping[str, Any]) -> None:
        self.file = ExportFile(path)
        self._params = calls.export_params(params)
        self._format = str(self._params.get("format", "ndjson"))
        self._parts: list[dict[str, Any]] = []
        self._before = Content()
        self._digest = hashlib.sha256()
        self._received = 0
        self._current: dict[str, Any] | None = None
        self._total = 0
        self._is_finished = False
        self._is_open = False

    def open(self, *, resume: bool) -> None:
        """Open the part, and read what an earlier download left, if it is to be resumed.

        Raises:
            WrongFile: there is a part that is not to be resumed, or is of another export.
        """
        self._part = self.file.open_part(resume=resume)
        self._is_open = True
        self._resume()
        self._after = self._before.last_task() if self._before.tasks else None
        self.call = calls.export({**self._params, "after": self._after})

    @property
    def tasks_before(self) -> int:
        """How many tasks earlier downloads have left in the part."""
        return self._before.tasks

    def close(self) -> None:
        """Close the part, if it is open. It stays if something has come."""
        if not self._is_open:
            return
        try:
            self._part.flush()
            if not self._is_finished and not os.fstat(self._part.fileno()).st_size:
                self.file.discard_part()
            elif not self._is_finished and self._current is not None:
                self._seal()
        finally:
            self._part.close()

    def _seal(self) -> None:
        """Keep the digest of the part, so that a change before it is continued is found."""
        assert self._current is not None  # noqa: S101 - there was a response
        os.fsync(self._part.fileno())
        self._part.seek(0)
        content = read_content(self._part, self._format)
        parts = [*self._parts, self._current]
        self.file.write_state(State(params=self._params, parts=parts, sha256=content.sha256))

    def begin(self, reply: Reply) -> bool:
        """Return whether a response is an export. If it is, its body is to be written."""
        if reply.status != _OK or "x-total" not in reply.headers:
            return False
        self._total = int(reply.headers["x-total"])
        since = reply.headers.get("x-since")
        if since is not None:
            # The window of the rest must not move on.
            others = {name: value for name, value in self._params.items() if name not in _MOVING}
            self._params = {**others, "since": since}
        self._current = {
            "export_id": reply.headers.get("x-export-id"),
            "snapshot": reply.headers.get("x-snapshot"),
            "after": self._after,
        }
        self.file.write_state(State(params=self._params, parts=[*self._parts, self._current]))
        return True

    def write(self, piece: bytes) -> None:
        """Write a piece of the export to the part, without the header of CSV if it is there."""
        skip = max(0, len(self._before.header) - self._received)
        self._digest.update(piece)
        self._received += len(piece)
        self._part.write(piece[skip:])

    def lost(self, lost: Lost) -> Lost:
        """Return why there was no response.

        Raises:
            Unavailable: there was one, and it was cut off. The part can be resumed.
        """
        if self._current is None:
            return lost
        raise Unavailable(f"the export was cut off: {lost.reason}")

    def manifest_call(self) -> Call[dict[str, Any]] | None:
        """Return the call for what the service has recorded; None if it can record nothing."""
        export_id = (self._current or {}).get("export_id")
        return None if export_id is None else calls.export_manifest(export_id)

    def finish(self, recorded: dict[str, Any] | None) -> ExportManifest:
        """Compare what came with what the service has sent; make the file, and its manifest.

        Raises:
            WrongFile: they differ.
        """
        assert self._current is not None  # noqa: S101 - there was a response
        self._part.seek(0)
        whole = read_content(self._part, self._format)
        found = {
            "tasks": whole.tasks - self._before.tasks,
            "bytes": self._received,
            "sha256": self._digest.hexdigest(),
            "complete": True,
        }
        sent = {**found, **(recorded or {})}
        for name, value, expected in [
            ("X-Total", found["tasks"], self._total),
            *((name, value, sent[name]) for name, value in found.items()),
        ]:
            if value != expected:
                raise WrongFile(
                    f"{self.file.part} is not what the service has sent: {name} is {expected}, not"
                    f" {value}; remove it, and export again"
                )
        parts = [*self._parts, {**self._current, **sent, "recorded": recorded is not None}]
        manifest = ExportManifest(
            format=self._format,
            tasks=whole.tasks,
            bytes=whole.size,
            sha256=whole.sha256,
            complete=True,
            one_snapshot=len(parts) == 1,
            recorded=all(part["recorded"] for part in parts),
            params=self._params,
            parts=parts,
        )
        self.file.finish(self._part, manifest.model_dump(mode="json"))
        self._is_finished = True
        return manifest

    def _resume(self) -> None:
        """Find out what the part has, and cut off what is not a whole task."""
        state = self.file.read_state()
        size = os.fstat(self._part.fileno()).st_size
        if state is None:
            if size:
                raise WrongFile(f"there is no {self.file.state}, so {self.file.part} is not known")
            return
        if not size:
            return
        if _without_times(state.params) != _without_times(self._params):
            raise WrongFile(f"{self.file.part} is of an export with other options: {state.params}")
        before = read_content(self._part, self._format)
        if state.sha256 not in {None, before.sha256}:
            raise WrongFile(
                f"{self.file.part} was changed after the export was cut off: remove it, and export"
                " again"
            )
        if before.tasks:
            self._before, self._params, parts = before, state.params, state.parts
            others = sum(part["tasks"] for part in parts[:-1])
            last = {**parts[-1], "tasks": before.tasks - others, "complete": False}
            last["recorded"] = last["export_id"] is not None
            self._parts = [*parts[:-1], *([last] if last["tasks"] else [])]
        self._part.truncate(self._before.size)
        self._part.seek(self._before.size)


def _without_times(params: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in params.items() if name not in _TIMES}
