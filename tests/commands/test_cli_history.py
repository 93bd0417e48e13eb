"""`audit history` and `audit log`."""

from __future__ import annotations

import json
import signal
import uuid
from collections.abc import Iterator
from datetime import datetime

import pytest

from tests.commandline import UNREACHABLE, Ended, audit, command, ended, fails_with, lines
from tests.conftest import SERVING, as_role, execute, task
from tests.processes import serving
from tests.waiting import wait_until

NO_PROXY = {"NO_PROXY": "*"}
LONG = "x" * 500
DIGITS = "123456789012345678901234567890.120"


@pytest.fixture
def changed(dsn: str) -> str:
    """The id of a task that was recorded and changed twice."""
    one = task(status="pending", error_message=None)
    assert audit("record", "-", given=lines(one), AUDIT_DSN=dsn)[0] == 0
    execute(
        dsn,
        "SELECT sequence_task_events(10)",
        f"UPDATE tasks SET outcome = '{{\"n\": {DIGITS}}}', error_message = '{LONG}'",
        "UPDATE tasks SET status = 'failed', completed_at = '2026-01-01T00:00:00Z'",
    )
    return str(one["task_id"])


@pytest.fixture
def url(dsn: str) -> Iterator[str]:
    with serving("--workers", "1", AUDIT_DSN=dsn) as (_, address, _):
        yield address


def columns(result: Ended) -> list[list[str]]:
    code, out, err = result
    assert (0, "") == (code, err)
    return [line.split() for line in out.splitlines()]


def test_history_is_a_table(dsn: str, changed: str) -> None:
    result = audit("history", changed, AUDIT_DSN=dsn)

    header, recorded, first, second = columns(result)
    assert ["position", "at", "event", "status", "actor", "role", "request", "changed"] == header
    assert ["recorded", "pending"] == recorded[2:4]
    assert ["-", "changed", "pending", "-", "audit"] == [first[0], *first[2:6]]
    assert f'error_message: null -> "{"x" * 59}...' in result[1]
    assert "status:" in second
    assert 'status: "pending" -> "failed"' in result[1]
    datetime.fromisoformat(second[1])


def test_history_as_json_is_whole_and_keeps_all_digits(dsn: str, changed: str, url: str) -> None:
    by_dsn = audit("history", changed, "--json", AUDIT_DSN=dsn)
    by_url = audit("history", changed, "--json", "--url", url, **NO_PROXY)

    assert (0, 0) == (by_dsn[0], by_url[0])
    assert DIGITS in by_dsn[1]
    first, second = (
        [{**event, "position": None} for event in json.loads(out)] for _, out, _ in (by_dsn, by_url)
    )
    assert first == second
    assert ["recorded", "changed", "changed"] == [event["kind"] for event in first]
    assert {"from": None, "to": LONG} == first[1]["changed"]["error_message"]


def test_history_has_all_pages(dsn: str, changed: str, url: str) -> None:
    one = task(status="pending")
    audit("record", "-", given=lines(one), AUDIT_DSN=dsn)
    execute(
        dsn,
        "DO $$ BEGIN FOR n IN 1..2100 LOOP"
        f" UPDATE tasks SET error_message = n::text WHERE task_id = '{one['task_id']}';"
        " END LOOP; END $$",
    )

    for where in (("--dsn", dsn), ("--url", url)):
        code, out, _ = audit("history", str(one["task_id"]), "--json", *where, **NO_PROXY)
        assert code == 0
        assert [str(n) for n in range(1, 2101)] == [
            event["changed"]["error_message"]["to"] for event in json.loads(out)[1:]
        ]


def test_history_of_a_task_without_events_says_so(dsn: str) -> None:
    task_id = record_before_the_log(dsn, 1)

    code, out, _ = audit("history", task_id, AUDIT_DSN=dsn)
    assert (0, True) == (code, out.startswith("no events: "))
    assert (0, "[]\n", "") == audit("history", task_id, "--json", AUDIT_DSN=dsn)


def test_history_fails_with_the_exit_codes_of_other_commands(dsn: str, url: str) -> None:
    unknown = str(uuid.uuid4())

    assert fails_with(audit("history", unknown, AUDIT_DSN=dsn), 65, "no task has the id", unknown)
    assert fails_with(audit("history", unknown, "--url", url, **NO_PROXY), 65, "no task has the id")
    assert fails_with(audit("history", unknown, AUDIT_DSN=UNREACHABLE), 69, "does not answer")
    nowhere = ("--url", "http://127.0.0.1:1")
    assert fails_with(audit("history", unknown, *nowhere, **NO_PROXY), 69, "does not answer")
    wrong = ("--url", f"{url}/elsewhere")
    assert fails_with(audit("history", unknown, *wrong, **NO_PROXY), 69, "refuses the request")
    assert audit("history", "7", AUDIT_DSN=dsn)[0] == 2


def test_history_by_url_needs_a_key_once_there_is_one(dsn: str, changed: str) -> None:
    make = ("keys", "create", "--name", "reader", "--scope", "read")
    key = audit(*make, AUDIT_DSN=dsn)[1].strip()
    with serving("--workers", "1", AUDIT_DSN=dsn) as (_, url, _):
        refused = audit("history", changed, "--url", url, **NO_PROXY)
        shown = audit("history", changed, "--url", url, AUDIT_KEY=key, **NO_PROXY)

    assert fails_with(refused, 65, "key")
    assert len(columns(shown)) == 4


# --- the log --------------------------------------------------------------------------------------


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


def test_status_shows_the_log_and_its_queue(dsn: str, changed: str) -> None:
    code, out, _ = audit("log", "status", "--json", AUDIT_DSN=dsn)
    table = audit("log", "status", AUDIT_DSN=dsn)

    size = json.loads(out)
    assert (0, 1, 2) == (code, size["events"], size["queued"])
    assert min(size["bytes"], size["queue_bytes"], size["queued_seconds"]) > 0
    assert [["log", "1"], ["queue", "2"]] == [row[:2] for row in columns(table)[1:]]


def test_backfill_imports_each_task_once(dsn: str, changed: str) -> None:
    record_before_the_log(dsn, 25_000)

    first = audit("log", "backfill", AUDIT_DSN=dsn)
    again = audit("log", "backfill", "--json", AUDIT_DSN=dsn)

    assert (0, "imported 25,000 of 25,001 tasks; the others already had events\n", "") == first
    assert (0, {"tasks": 25_001, "imported": 0}) == (again[0], json.loads(again[1]))


def test_backfill_can_be_interrupted(dsn: str) -> None:
    record_before_the_log(dsn, 60_000)
    process = command("log", "backfill", AUDIT_DSN=dsn)
    wait_until(lambda: imported(dsn) >= 10_000)
    process.send_signal(signal.SIGINT)

    assert ended(process)[0] in {0, 130}
    assert imported(dsn) % 10_000 == 0
    assert audit("log", "backfill", AUDIT_DSN=dsn)[0] == 0
    assert imported(dsn) == 60_000


def imported(dsn: str) -> int:
    ((number,),) = execute(
        dsn, "SELECT count(DISTINCT task_id) FROM task_history WHERE kind = 'imported'"
    )
    return int(number)


def test_backfill_needs_the_owner(dsn: str) -> None:
    record_before_the_log(dsn, 1)

    result = audit("log", "backfill", AUDIT_DSN=as_role(dsn, SERVING))

    assert fails_with(result, 69, "may not do this", "permission denied")
