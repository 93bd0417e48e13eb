"""A service that the tests of a module share, and programs that record in other processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from audit.recorder import Recorder
from tests.conftest import execute
from tests.processes import API, get, serving


@pytest.fixture(scope="module")
def url(shared_dsn: str) -> Iterator[str]:
    with serving("--dsn", shared_dsn, log=subprocess.DEVNULL) as (_, url, _lines):
        yield url


@pytest.fixture
def errors() -> list[Exception]:
    """What the recorder of the test reports."""
    return []


Record = Callable[..., Recorder]


@pytest.fixture
def make(url: str, tmp_path: Path, errors: list[Exception]) -> Iterator[Record]:
    """Make recorders with a spool of the test, which are closed at its end."""
    made = []

    def make(at: str = url, **options: Any) -> Recorder:
        given = {"spool": tmp_path / "spool.db", "on_error": errors.append, **options}
        made.append(Recorder(at, **given))
        return made[-1]

    yield make
    for recorder in made:
        recorder.close(0)


@pytest.fixture
def recorder(make: Record) -> Recorder:
    return make()


Look = Callable[[str], dict[str, Any]]


@pytest.fixture
def look(url: str) -> Look:
    """Return a task as the service has it."""

    def look(task_id: str) -> dict[str, Any]:
        _, document = get(f"{url}{API}/tasks/{task_id}")
        assert isinstance(document, dict)
        return document

    return look


Statuses = Callable[[], dict[str, str]]


@pytest.fixture
def statuses(shared_dsn: str) -> Statuses:
    """Return the state of each task of the database, by its request text."""

    def statuses() -> dict[str, str]:
        rows = execute(shared_dsn, "SELECT request_text, status::text FROM tasks")
        assert len(rows) == len(dict(rows)), "a task is recorded twice"
        return dict(rows)

    return statuses


Run = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def run() -> Iterator[Run]:
    """Run a Python program in a process of its own, which is killed at the end of the test."""
    processes = []

    def run(program: str, *arguments: object, **variables: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", program, *map(str, arguments)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **variables},
        )
        processes.append(process)
        return process

    yield run
    for process in processes:
        process.kill()
        process.wait()
        assert process.stdout
        process.stdout.close()
