"""The service as a process of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

AUDIT = Path(sys.executable).with_name("audit")


@contextlib.contextmanager
def serving(
    *options: str,
    audit: Sequence[str | Path] = (AUDIT,),
    log: IO[bytes] | None = None,
    **variables: str,
) -> Iterator[tuple[subprocess.Popen[str], str, list[str]]]:
    """Run `audit serve` on a free port; yield the process, its URL and the lines that it printed.

    What it logs goes to `log`; None: to this process's own. It is stopped by SIGINT at the end if
    it still runs.
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
