"""The service as a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

AUDIT = Path(sys.executable).with_name("audit")
API = "/api/v1/audit"


@contextlib.contextmanager
def serving(
    *options: str,
    audit: Sequence[str | Path] = (AUDIT,),
    log: IO[bytes] | int | None = None,
    **variables: str,
) -> Iterator[tuple[subprocess.Popen[str], str, list[str]]]:
    """Run `audit serve` on a free port; yield the process, its URL and the lines that it printed.

    Its log goes to `log`, or to standard error if that is None. If the process still runs at the
    end, it is stopped by SIGINT.
    """
    process = subprocess.Popen(
        [*audit, "serve", "--port", "0", *options],
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        env={**os.environ, **variables},
        start_new_session=True,
    )
    try:
        assert process.stdout
        lines = []
        for line in process.stdout:
            lines.append(line.rstrip("\n"))
            if line.startswith("Ctrl-C"):
                break
        assert lines, f"it ended with {process.wait()}"
        yield process, lines[0].split()[3], lines
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.wait(60)
        if process.stdout:
            process.stdout.close()


def connected(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=60)


def accepts(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def get(url: str) -> tuple[int, Any]:
    with urllib.request.urlopen(url, timeout=20) as response:
        return response.status, json.load(response)


def fetch(url: str) -> int:
    """Ask over a new connection: any worker may take it."""
    try:
        with urllib.request.urlopen(url, timeout=20) as response:
            response.read()
            return int(response.status)
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code


def is_alive(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def workers_of(process: subprocess.Popen[str]) -> set[int]:
    return children_of(process.pid)


def children_of(pid: int) -> set[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return {int(child) for child in children.split() if is_alive(int(child))}


def memory_kib(pid: int, name: str = "VmRSS") -> int:
    """Return the resident memory of a process; with `VmHWM`, its peak."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition(f"{name}:")[2].split()[0])


class Memory:
    """The memory of a process."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        Path(f"/proc/{pid}/clear_refs").write_text("5")
        self._before = memory_kib(pid)

    def grown(self) -> int:
        """Return by how many bytes it has been larger, at its peak, than at the beginning."""
        return (memory_kib(self._pid, "VmHWM") - self._before) * 1024
