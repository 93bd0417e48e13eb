"""`audit tail`: prints each change once, also if it is killed and started again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.commandline import ENVIRONMENT, UNREACHABLE, audit, command, ended, fails_with, lines
from tests.conftest import execute, task
from tests.processes import AUDIT, free_port, serving
from tests.waiting import wait_until

NO_PROXY = {"NO_PROXY": "*"}


def record(dsn: str, number: int, **members: object) -> list[str]:
    tasks = [task(**members) for _ in range(number)]
    assert audit("record", "-", given=lines(*tasks), AUDIT_DSN=dsn)[0] == 0
    return [str(one["task_id"]) for one in tasks]


def tail(*options: str | Path) -> subprocess.Popen[str]:
    return command("tail", *options, **NO_PROXY)


def take(process: subprocess.Popen[str], number: int) -> list[str]:
    assert process.stdout
    return [process.stdout.readline().rstrip("\n") for _ in range(number)]


def interrupted(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    process.send_signal(signal.SIGINT)
    return ended(process)


def killed(process: subprocess.Popen[str]) -> None:
    """Kill a process that has nothing left to print."""
    process.kill()
    assert ended(process)[1] == ""


def test_changes_are_printed_as_they_come(dsn: str, where: tuple[str, str]) -> None:
    before = record(dsn, 2)
    following = tail("--from", "start", "-o", "ids", *where)
    shown = take(following, 2)
    shown += take_after(following, record(dsn, 1), 1)
    code, rest, _ = interrupted(following)

    assert sorted(shown[:2]) == sorted(before)
    assert (code, rest) == (130, "")


def take_after(process: subprocess.Popen[str], recorded: list[str], number: int) -> list[str]:
    shown = take(process, number)
    assert sorted(shown) == sorted(recorded)
    return shown


def test_the_next_run_continues_where_a_killed_one_ended(
    dsn: str, where: tuple[str, str], tmp_path: Path
) -> None:
    file = tmp_path / "position"
    file.touch()
    recorded = record(dsn, 3)
    options = ("--from", "start", "-o", "ids", "--position-file", file, *where)
    shown: list[str] = []
    for _ in range(3):
        following = tail(*options)
        recorded += record(dsn, 2)
        shown += take(following, len(recorded) - len(shown))
        number = len(shown)
        wait_until(lambda number=number: file.read_text() == f"{number}\n")  # type: ignore[misc]
        killed(following)

    assert sorted(shown) == sorted(recorded)
    assert len(set(shown)) == 9
    assert [path.name for path in tmp_path.iterdir()] == ["position"]


def test_now_is_kept_as_a_position(dsn: str, tmp_path: Path) -> None:
    file = tmp_path / "position"
    record(dsn, 2)
    execute(dsn, "SELECT sequence_task_events(10)")
    options = ("-o", "ids", "--position-file", file, "--dsn", dsn)
    first = tail(*options)
    wait_until(file.exists)
    killed(first)
    new = record(dsn, 1)
    second = tail(*options)

    assert file.read_text() == "2\n"
    assert take(second, 1) == new
    killed(second)


@pytest.mark.parametrize("variables", [{}, {"PYTHONUNBUFFERED": "1"}], ids=["", "unbuffered"])
def test_a_change_that_cannot_be_written_is_printed_by_the_next_run(
    dsn: str, tmp_path: Path, variables: dict[str, str]
) -> None:
    recorded = record(dsn, 9)
    execute(dsn, "SELECT sequence_task_events(10)")
    file, printed = tmp_path / "position", tmp_path / "printed"
    options = ("--from", "start", "-o", "ids", "--position-file", file, "--dsn", dsn)
    limited = ("bash", "-c", 'ulimit -f 1; exec "$@"', "-", AUDIT, "tail", *options)
    printed.write_text("x" * 900 + "\n")  # of 1,024 bytes
    with printed.open("a") as output:
        done = subprocess.run(
            limited,
            env=ENVIRONMENT | variables,
            stdout=output,
            stderr=subprocess.PIPE,
            check=False,
            timeout=60,
        )
    _, *whole, half = printed.read_text().split("\n")
    rest = tail(*options)

    assert (done.returncode, b"File too large" in done.stderr) == (74, True)
    later = take(rest, 6)
    assert sorted([*whole, *later]) == sorted(recorded)
    assert half
    assert later[0].startswith(half)
    killed(rest)


def test_filters_and_forms(dsn: str) -> None:
    record(dsn, 1, services_touched=["search"])
    (failed,) = record(dsn, 1, status="failed", error_message="disk\tfull\x1b[31m")
    options = ("--from", "0", "--status", "failed", "--service", "payments", "--dsn", dsn)
    shown = {}
    for form in ("tsv", "ndjson", "csv", "table"):
        following = tail(*options, "-o", form)
        shown[form] = take(following, 2 if form in {"csv", "table"} else 1)
        killed(following)

    assert json.loads(shown["ndjson"][0])["task_id"] == failed
    assert shown["tsv"][0].split("\t")[2:4] == [failed, "failed"]
    assert "disk\\tfull" in shown["tsv"][0]
    assert shown["csv"][0] == (
        "n,changed_at_utc,task_id,status,by,changed,request_text,error_message"
    )
    assert "STATE" in shown["table"][0]
    assert failed in shown["table"][1]
    assert "\x1b[31m" not in shown["table"][1]


def test_it_goes_on_while_the_service_restarts(dsn: str) -> None:
    port = str(free_port())
    with serving("--workers", "1", "--port", port, AUDIT_DSN=dsn) as (_, url, _):
        following = tail("--from", "start", "-o", "ids", "--url", url)
        shown = take_after(following, record(dsn, 1), 1)
    recorded = record(dsn, 2)
    with serving("--workers", "1", "--port", port, AUDIT_DSN=dsn):
        shown += take_after(following, recorded, 2)
        code, rest, noted = interrupted(following)

    assert len(shown) == 3
    assert (code, rest) == (130, "")
    assert url in noted


def test_what_cannot_be_followed(dsn: str, tmp_path: Path) -> None:
    file = tmp_path / "position"
    file.write_text("12 monkeys\n")

    assert fails_with(audit("tail", "--from", "-1"), 2, "--from")
    assert fails_with(audit("tail", "-o", "json"), 2, "-o json")
    assert fails_with(audit("tail", "--position-file", str(file)), 2, "does not hold a position")
    os.mkfifo(pipe := tmp_path / "pipe")
    assert fails_with(audit("tail", "--position-file", str(pipe)), 74, "not a regular file")
    nowhere = str(tmp_path / "no" / "folder")
    options = ("--position-file", nowhere, "--dsn", dsn)
    assert fails_with(audit("tail", *options), 74, f"{nowhere}.new: No such file")
    assert fails_with(audit("tail", "--outcome", "[]", "--dsn", dsn), 2, "outcome")
    assert fails_with(audit("tail", "--from", "7", "--dsn", dsn), 65, "the log has 0 changes")
    assert fails_with(audit("tail", "--dsn", UNREACHABLE), 69)
