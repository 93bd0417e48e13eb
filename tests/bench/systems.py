"""What is measured, as processes of their own: the service, its peer, a trivial route."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg

from tests.processes import serving

ROOT = Path(__file__).parent.parent.parent
WORKERS = 2
#: A service with this keeps no answers and shares none: it computes each anew.
_COMPUTING = {"AUDIT_ANSWERS_BYTES": "0"}
#: What is slow is to be measured, not refused.
_PATIENT = {
    "AUDIT_STATEMENT_TIMEOUT_SECONDS": "120",
    # If writes had less time than statements, each would need three more round trips.
    "AUDIT_WRITE_TIMEOUT_SECONDS": "120",
    "AUDIT_ACQUIRE_TIMEOUT_SECONDS": "120",
    "AUDIT_REQUEST_TIMEOUT_SECONDS": "240",
    "AUDIT_QUEUE_SECONDS": "120",
}
_START_SECONDS = 60
_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class System:
    """A process that answers at an address."""

    host: str
    port: int
    pid: int

    def get(self, target: str) -> tuple[dict[str, Any], dict[str, str]]:
        """Return the JSON and the headers (names in lower case) of an answer."""
        with urllib.request.urlopen(f"http://{self.host}:{self.port}{target}") as answer:
            headers = {name.lower(): value for name, value in answer.headers.items()}
            return json.loads(answer.read()), headers


@contextlib.contextmanager
def service(
    dsn: str, *, workers: int = WORKERS, computing: bool = False, read_dsn: str | None = None
) -> Iterator[System]:
    """Run the service; `computing` is without its memory of answers."""
    variables = {**_PATIENT, **(_COMPUTING if computing else {}), "AUDIT_DSN": dsn}
    if read_dsn is not None:
        variables["AUDIT_READ_DSN"] = read_dsn
    with serving("--workers", str(workers), log=None, **variables) as (process, url, _):
        parts = urlsplit(url)
        assert parts.hostname
        assert parts.port
        yield System(parts.hostname, parts.port, process.pid)


@contextlib.contextmanager
def peer(dsn: str) -> Iterator[System]:
    """Run the peer on its database."""
    command = ["-m", "uvicorn", "tests.bench.peers.plain:app", "--workers", str(WORKERS)]
    quiet = ["--no-access-log", "--log-level", "warning"]
    # Asked once a second, each of 64 connections is idle for longer than uvicorn keeps one.
    patient = ["--timeout-keep-alive", "600"]
    with _running([*command, *quiet, *patient, "--port"], PEER_DSN=dsn) as system:
        yield system


@contextlib.contextmanager
def trivial() -> Iterator[System]:
    """Run one process that answers two bytes."""
    with _running(["-m", "tests.bench.peers.trivial"]) as system:
        yield system


@contextlib.contextmanager
def _running(command: list[str], **variables: str) -> Iterator[System]:
    """Run a Python program that takes a port as its last argument."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, *command, str(port)],
        env={**os.environ, **variables},
        cwd=ROOT,
        start_new_session=True,
    )
    try:
        _wait_for(f"http://127.0.0.1:{port}/", process)
        yield System("127.0.0.1", port, process.pid)
    finally:
        process.terminate()
        process.wait(30)


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(url).close()
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise RuntimeError(f"{process.args!r} did not start")


def postmaster(dsn: str) -> int:
    """Return the process of the PostgreSQL server, the parent of its sessions."""
    with psycopg.connect(dsn) as connection:
        stat = Path(f"/proc/{connection.info.backend_pid}/stat").read_text()
    return int(stat.rpartition(")")[2].split()[1])


def cpu_seconds(pid: int) -> float:
    """Return the processor time so far of a process and all below it, those that ended included."""
    children: dict[int, list[int]] = defaultdict(list)
    ticks: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                children[int(fields[1])].append(int(entry.name))
                # Its own, and those of its children that ended: user and system time.
                ticks[int(entry.name)] = sum(map(int, fields[11:15]))
    tree = [pid]
    for parent in tree:
        tree += children[parent]
    return sum(ticks.get(one, 0) for one in tree) / _TICKS_A_SECOND
