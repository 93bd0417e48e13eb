"""`audit watch`: tasks that end before, during and after, or never; and services that restart."""

from __future__ import annotations

import json
import signal
import subprocess
import uuid

import pytest

from tests.commandline import UNREACHABLE, audit, command, ended, fails_with, lines
from tests.conftest import execute, task
from tests.processes import free_port, serving

NO_PROXY = {"NO_PROXY": "*"}


def record(dsn: str, status: str) -> str:
    one = task(status=status)
    assert audit("record", "-", given=lines(one), AUDIT_DSN=dsn)[0] == 0
    return str(one["task_id"])


def change(dsn: str, task_id: str, status: str) -> None:
    execute(dsn, f"UPDATE tasks SET status = '{status}' WHERE task_id = '{task_id}'")


def watching(task_id: str, *options: str) -> subprocess.Popen[str]:
    return command("watch", task_id, *options, **NO_PROXY)


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline()


def statuses(out: str) -> list[str]:
    return [line.split("\t")[3] for line in out.splitlines()]


@pytest.mark.parametrize(("status", "code"), [("completed", 0), ("failed", 1), ("rejected", 1)])
def test_a_task_that_has_ended_ends_the_command_at_once(
    dsn: str, where: tuple[str, str], status: str, code: int
) -> None:
    task_id = record(dsn, status)

    result = audit("watch", task_id, *where, **NO_PROXY)
    assert (code, [status], "") == (result[0], statuses(result[1]), result[2])
    assert 0 == audit("watch", task_id, "--no-exit-status", *where, **NO_PROXY)[0]


@pytest.mark.parametrize(("status", "code"), [("completed", 0), ("failed", 1)])
def test_a_task_is_followed_to_its_end(
    dsn: str, where: tuple[str, str], status: str, code: int
) -> None:
    task_id = record(dsn, "pending")
    process = watching(task_id, *where)
    assert ["pending"] == statuses(first_line(process))
    change(dsn, task_id, "executing")
    assert ["executing"] == statuses(first_line(process))
    change(dsn, task_id, status)

    returned, out, _ = ended(process)
    assert (code, [status]) == (returned, statuses(out))


def test_events_are_lines_of_json(dsn: str) -> None:
    task_id = record(dsn, "completed")

    _, out, _ = audit("watch", task_id, "-o", "ndjson", AUDIT_DSN=dsn)
    assert ["recorded"] == [json.loads(line)["kind"] for line in out.splitlines()]
    assert fails_with(audit("watch", task_id, "-o", "json", AUDIT_DSN=dsn), 2, "ndjson")


def test_a_task_that_never_ends_ends_at_the_timeout(dsn: str, where: tuple[str, str]) -> None:
    task_id = record(dsn, "pending")

    result = audit("watch", task_id, "--timeout", "1s", *where, **NO_PROXY)
    assert fails_with(result, 124, "has not ended within 1s")
    assert ["pending"] == statuses(result[1])
    assert fails_with(audit("watch", task_id, "--timeout", "soon"), 2, "--timeout")


def test_a_task_that_is_not_there(dsn: str, where: tuple[str, str]) -> None:
    unknown = str(uuid.uuid4())

    assert fails_with(audit("watch", unknown, *where, **NO_PROXY), 66, "no task has the id")
    options = ("--wait-for", "--timeout", "1s")
    code, _, err = audit("watch", unknown, *options, *where, **NO_PROXY)
    assert (124, True) == (code, "waiting until the task is recorded" in err)


def test_a_task_that_is_recorded_later_is_awaited(dsn: str, where: tuple[str, str]) -> None:
    one = task(status="completed")
    process = watching(str(one["task_id"]), "--wait-for", *where)
    assert process.stderr
    while "waiting" not in process.stderr.readline():
        pass
    audit("record", "-", given=lines(one), AUDIT_DSN=dsn)

    code, out, _ = ended(process)
    assert (0, ["completed"]) == (code, statuses(out))


def test_a_service_that_restarts_does_not_end_the_command(dsn: str) -> None:
    task_id = record(dsn, "pending")
    port = str(free_port())
    with serving("--port", port, "--workers", "1", AUDIT_DSN=dsn) as (_, url, _):
        process = watching(task_id, "--url", url)
        assert ["pending"] == statuses(first_line(process))
    assert process.stderr
    while "trying" not in process.stderr.readline():
        pass
    change(dsn, task_id, "completed")
    with serving("--port", port, "--workers", "1", AUDIT_DSN=dsn):
        code, out, _ = ended(process)

    assert (0, ["completed"]) == (code, statuses(out))


def test_a_place_that_never_answers_ends_the_command() -> None:
    unknown = str(uuid.uuid4())

    assert fails_with(audit("watch", unknown, AUDIT_DSN=UNREACHABLE), 69, "does not answer")
    nowhere = ("--url", "http://127.0.0.1:1", "--wait-for")
    assert fails_with(audit("watch", unknown, *nowhere, **NO_PROXY), 69, "does not answer")


def test_ctrl_c_ends_the_command(dsn: str, where: tuple[str, str]) -> None:
    process = watching(record(dsn, "pending"), *where)
    first_line(process)
    process.send_signal(signal.SIGINT)

    assert 130 == ended(process)[0]


def test_a_task_without_events_is_followed(dsn: str) -> None:
    execute(
        dsn,
        "ALTER TABLE tasks DISABLE TRIGGER queue_recorded",
        "INSERT INTO tasks (task_id, request_text) SELECT gen_random_uuid(), 'x'",
        "ALTER TABLE tasks ENABLE ALWAYS TRIGGER queue_recorded",
    )
    task_id = str(execute(dsn, "SELECT task_id FROM tasks")[0][0])
    process = watching(task_id, "--dsn", dsn)
    change(dsn, task_id, "completed")

    assert 0 == ended(process)[0]
