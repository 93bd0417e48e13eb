"""Runs the command `audit` in tests."""

from __future__ import annotations

import json
import multiprocessing
import os
import pty
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from audit.commands import main
from tests.conftest import execute
from tests.processes import AUDIT

ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith("AUDIT_")},
    "COLUMNS": "300",
    "FORCE_COLOR": "1",  # as many CI systems set: still no bar without a terminal
    "XDG_CONFIG_HOME": os.devnull,  # the profiles of whoever runs the tests are not read
    "TZ": "UTC",
}
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["audit.commands.record_database", "audit.process.serve", __name__])

HIDDEN = "not-to-be-shown"
UNREACHABLE = f"postgresql://audit:{HIDDEN}@127.0.0.1:1/history"


def start(*arguments: str, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "audit", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**ENVIRONMENT, **variables},
    )


Ended = tuple[int | None, str, str]


def audit(*arguments: str, given: str = "", **variables: str) -> Ended:
    """Run a command; return its exit code and what it wrote to both outputs.

    The line that names the database is left out. `test_cli_databases.py` tests it.

    The command runs in a fork of a process that has imported it, because the imports take most of
    a second.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("in", "out", "err")]
        files[0].write_text(given)
        process = FORKS.Process(target=_run, args=(arguments, variables, files))
        process.start()
        process.join(60)
        logged = files[2].read_text().splitlines(keepends=True)
        rest = "".join(line for line in logged if not line.startswith("audit: database: "))
        return process.exitcode, files[1].read_text(), rest


def on_terminal(width: int, *arguments: str, **variables: str) -> tuple[int | None, str]:
    """Run a command on a terminal; return its exit code and what the terminal got.

    What it writes to standard error is left out.
    """
    variables = {"COLUMNS": str(width), "LINES": "500", "FORCE_COLOR": "", **variables}
    ours, its = pty.openpty()
    try:
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder, "in"), Path(os.ttyname(its)), Path(folder, "err")]
            files[0].touch()
            process = FORKS.Process(target=_run, args=(arguments, variables, files))
            process.start()
            shown = b""
            while process.is_alive() or select.select([ours], [], [], 0)[0]:
                if select.select([ours], [], [], 0.05)[0]:
                    shown += os.read(ours, 65536)
            process.join()
            if process.exitcode:
                print(files[2].read_text())  # noqa: T201 - pytest shows it if the test fails
    finally:
        os.close(its)
        os.close(ours)
    return process.exitcode, shown.decode().replace("\r\n", "\n")


def record_before_the_log(dsn: str, number: int) -> str:
    """Record tasks that have no events; return the id of one."""
    execute(
        dsn,
        "ALTER TABLE tasks DISABLE TRIGGER queue_recorded",
        "INSERT INTO tasks (task_id, request_text, status)"
        f" SELECT gen_random_uuid(), 'x', 'failed' FROM generate_series(1, {number})",
        "ALTER TABLE tasks ENABLE ALWAYS TRIGGER queue_recorded",
    )
    return str(execute(dsn, "SELECT task_id FROM tasks LIMIT 1")[0][0])


def _run(arguments: Sequence[str], variables: Mapping[str, str], files: Sequence[Path]) -> None:
    sys.stdin = files[0].open()
    for number, file in enumerate(files[1:], 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    # The stream of the server may have been one that can seek.
    encoding = variables.get("PYTHONIOENCODING", "utf-8")
    sys.stdout = os.fdopen(1, "w", encoding=encoding, closefd=False)
    os.environ.clear()
    os.environ.update({**ENVIRONMENT, **variables})
    time.tzset()
    sys.argv = ["audit", *arguments]
    main.main()


def lines(*tasks: dict[str, Any]) -> str:
    return "".join(json.dumps(one) + "\n" for one in tasks)


def count(dsn: str) -> int:
    return int(execute(dsn, "SELECT count(*) FROM tasks")[0][0])


def command(*arguments: str | Path, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [AUDIT, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**ENVIRONMENT, **variables},
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def fails_with(result: Ended, code: int, *parts: str) -> bool:
    """Whether a command ended with a code and one line, which has these parts and no secret."""
    ended, _, err = result
    assert code == ended, err
    assert 1 == len(err.splitlines()), err
    assert [] == [part for part in parts if part not in err], err
    return "Traceback" not in err and HIDDEN not in err
