"""What is logged when the same thing fails again and again: its beginning, its course, its end."""

from __future__ import annotations

import logging
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from audit.errors import Unavailable
from audit.postgres import embedded
from audit.telemetry import logs
from audit.telemetry.throttle import Recurring, Throttle
from tests.commandline import ENVIRONMENT
from tests.conftest import FAST
from tests.processes import fetch, serving
from tests.waiting import wait_until

log = logging.getLogger("audit")


class Clock:
    """A clock that a test moves."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("time.time", clock)
    monkeypatch.setattr("time.monotonic", clock)
    return clock


@pytest.fixture
def text_log() -> Iterator[None]:
    """Log as `audit serve` does."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    logs.set_up("text")
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("audit.requests").setLevel(logging.NOTSET)


def messages(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines that were logged, without their times."""
    lines = capsys.readouterr().err.splitlines()
    assert all(re.match(r"[0-9-]{10}T[0-9:.]{12}Z [A-Z]+ ", line) for line in lines), lines
    return [line.partition(" ")[2] for line in lines]


@pytest.mark.usefixtures("text_log")
def test_an_outage_is_logged_at_its_start_each_minute_and_at_its_end(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    reading = Recurring("reading the keys")
    for second in range(181):
        clock.now = 1000.0 + second
        with reading.attempt():
            if second < 180:
                raise Unavailable("the database does not answer")

    assert messages(capsys) == [
        "WARNING reading the keys: the database does not answer",
        "WARNING reading the keys: the database does not answer (60 failures in 60 s)",
        "WARNING reading the keys: the database does not answer (60 failures in 60 s)",
        "WARNING reading the keys: back after 180 s (180 failures)",
    ]


@pytest.mark.usefixtures("text_log", "clock")
def test_work_that_succeeds_logs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    reading = Recurring("reading the keys")
    for _ in range(3):
        with reading.attempt():
            pass

    assert messages(capsys) == []


@pytest.mark.usefixtures("text_log", "clock")
def test_an_unexpected_failure_is_logged_with_its_traceback(
    capsys: pytest.CaptureFixture[str],
) -> None:
    folding = Recurring("folding the counts")
    for _ in range(2):
        with folding.attempt():
            raise KeyError("x")

    first, *trace = capsys.readouterr().err.splitlines()
    assert first.endswith("ERROR folding the counts: KeyError")
    assert trace[-1] == "KeyError: 'x'"
    assert "\n".join(trace).count("Traceback") == 1


@pytest.mark.usefixtures("text_log")
def test_any_warning_with_the_same_text_is_logged_once_a_minute(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    for second in range(121):
        clock.now = 1000.0 + second
        log.warning("worker ended with %s", -9)
        if second in {0, 30}:
            log.warning("worker ended with %s", second)

    assert messages(capsys) == [
        "WARNING worker ended with -9",
        "WARNING worker ended with 0",
        "WARNING worker ended with 30",
        "WARNING worker ended with -9 (repeated 59 times since it was last logged)",
        "WARNING worker ended with -9 (repeated 59 times since it was last logged)",
    ]


@pytest.mark.usefixtures("text_log")
def test_what_was_left_out_of_a_warning_that_stopped_is_still_counted(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(5):
        log.warning("full")
    clock.now += 600
    log.warning("something else")
    log.warning("yet another")

    assert messages(capsys) == [
        "WARNING full",
        "WARNING something else (4 warnings were left out before this one)",
        "WARNING yet another",
    ]


@pytest.mark.usefixtures("clock")
def test_a_throttle_forgets_the_oldest_of_many_texts() -> None:
    throttle = Throttle()
    first = [throttle.repetitions(f"text {number}") for number in range(5000)]

    assert first == [0] * 5000
    assert throttle.repetitions("text 4500") is None
    assert throttle.repetitions("text 0") == 0


def test_a_database_that_is_down_is_logged_once_and_its_return_too(tmp_path: Path) -> None:
    output = tmp_path / "log"
    with (
        embedded.started(tmp_path / "data", options=FAST) as server,
        output.open("wb") as errors,
        serving("--migrate", "--workers", "1", log=errors, AUDIT_DSN=server.dsn) as (_, url, _),
    ):
        wait_until(lambda: fetch(f"{url}/readyz") == 200)
        server.stop()
        time.sleep(7)
        server.start()
        wait_until(lambda: "reading the keys: back after" in output.read_text())

    lines = [line for line in output.read_text().splitlines() if "reading the keys" in line]
    assert len(lines) == 2, lines
    assert re.search(r"Z WARNING reading the keys: back after \d+ s \(\d+ failures\)$", lines[1])


def test_what_a_command_logs_has_a_time_too() -> None:
    """A service that refuses connections is tried again."""
    with subprocess.Popen(
        [sys.executable, "-m", "audit", "demo", "--tasks", "1", "--url", "http://127.0.0.1:1"],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=ENVIRONMENT,
    ) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)

    assert re.match(r"[0-9-]{10}T[0-9:.]{12}Z WARNING http://127.0.0.1:1 .*trying again", line)
