"""Processes that run an embedded PostgreSQL, and the servers that they run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import FAST

#: A process that runs a server on its argument until it is killed. The server outlives it if asked
#: to, and takes a second to launch if asked to, as on a busy machine: before or after Linux knows
#: that it ends with its parent. A shell starts background processes with SIGINT ignored.
OWNER = f"""
import signal, sys, time
from pathlib import Path
from audit.postgres import embedded
if "--outlived" in sys.argv:
    embedded._stopping_with_us = lambda command: command
slow = ["sh", "-c", 'sleep 1; exec "$@"', "sh"]
if "--slow" in sys.argv:
    start = embedded._start
    embedded._start = lambda command, log: start([*slow, *command], log)
if "--slow-later" in sys.argv:
    ordinary = embedded._as_ordinary_user
    embedded._as_ordinary_user = lambda command: [*slow, *ordinary(command)]
if "--in-background" in sys.argv:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
print("begins", flush=True)
with embedded.running(Path(sys.argv[1]), options={FAST!r}) as dsn:
    print(dsn, flush=True)
    time.sleep(60)
"""


def own(data_dir: Path, *options: str) -> subprocess.Popen[str]:
    """Start an owner; return as soon as it has begun to start the server."""
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(data_dir), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    said(owner)
    return owner


def said(owner: subprocess.Popen[str]) -> str:
    """The next line: first that it begins, then the DSN."""
    assert owner.stdout is not None
    return owner.stdout.readline().strip()


def kill(owner: subprocess.Popen[str]) -> None:
    with owner:
        owner.kill()


def servers_on(data_dir: Path) -> list[int]:
    """The processes that run as servers on this folder, without the children of a server.

    A child has the command of its parent until it has set its title.
    """
    parents = {}
    for process in Path("/proc").iterdir():
        try:
            command = (process / "cmdline").read_bytes().split(b"\0")
            if os.fsencode(data_dir / "postgresql") in command and b"-D" in command:
                after_name = (process / "stat").read_text().rpartition(") ")[2]
                parents[int(process.name)] = int(after_name.split()[1])
        except OSError:
            continue
    return [pid for pid, parent in parents.items() if parent not in parents]
