"""Identifies a process so that others can tell whether it is gone, although ids are used again."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_ENDED = frozenset("ZX")


@dataclass(frozen=True, slots=True)
class Process:
    """A process of a host since it booted."""

    host: str
    """The host name, and the namespace of process ids, which each container has for itself."""
    pid: int
    boot_id: str
    """Changes when the host starts again. Empty if the system does not tell."""
    started: str
    """When it was started, in the units of the system. Empty if the system does not tell."""

    @classmethod
    def current(cls) -> Self:
        """Return the process that calls this."""
        pid = os.getpid()
        return cls(f"{socket.gethostname()}/{_namespace()}", pid, _boot_id(), _started(pid) or "")

    def is_gone(self) -> bool:
        """Return whether it has ended for sure. Of another host or container nothing is known."""
        here = Process.current()
        if self.host.partition("/")[0] != here.host.partition("/")[0]:
            return False
        if self.boot_id != here.boot_id:
            return True
        if self.host != here.host:
            return False
        started = _started(self.pid)
        return started is None or bool(started and self.started and started != self.started)


def _namespace() -> int:
    try:
        return Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return 0


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """Return when a process was started, "" if that is not known, None if it has ended."""
    try:
        # The name of the program, in parentheses, may contain anything.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "" if _exists(pid) else None
    return None if fields[0] in _ENDED else fields[19]


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
