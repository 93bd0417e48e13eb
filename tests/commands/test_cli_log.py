"""`audit log`: the size of the event log, and events for tasks from before it."""

from __future__ import annotations

import json
import signal

from tests.commandline import (
    Ended,
    audit,
    command,
    ended,
    fails_with,
    record_before_the_log,
)
from tests.conftest import SERVING, as_role, execute
from tests.waiting import wait_until


def columns(result: Ended) -> list[list[str]]:
    code, out, err = result
    assert (0, "") == (code, err)
    return [line.split() for line in out.splitlines()]


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
