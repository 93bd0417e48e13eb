"""`audit show`: a task, its timeline and its events."""

from __future__ import annotations

import json
import uuid
from datetime import datetime

from tests.commandline import (
    UNREACHABLE,
    audit,
    fails_with,
    lines,
    on_terminal,
    record_before_the_log,
)
from tests.commands.conftest import DIGITS, LONG
from tests.conftest import execute, task
from tests.processes import get, serving

NO_PROXY = {"NO_PROXY": "*"}


def test_a_task_is_shown_with_its_timeline(dsn: str, changed: str) -> None:
    code, out = on_terminal(100, "show", changed, AUDIT_DSN=dsn, NO_COLOR="1")

    assert 0 == code
    above, _, timeline = out.partition("TIMELINE (UTC)")
    assert above.startswith("✖ failed")
    assert f"task id              {changed}" in above
    assert LONG in above.replace("\n", "")
    header, recorded, first, second = timeline.splitlines()
    assert ["STATE", "AFTER", "BY", "CHANGED"] == header.split()
    assert ["pending", "audit", "recorded"] == recorded.split()[3:]
    assert ["audit", "outcome,", "error_message"] == first.split()[5:]
    assert ["✖", "failed"] == second.split()[2:4]
    datetime.fromisoformat(" ".join(second.split()[:2]))


def test_changes_show_values_before_and_after(dsn: str, changed: str) -> None:
    shown = on_terminal(100, "show", changed, "--changes", AUDIT_DSN=dsn, NO_COLOR="1")[1]
    piped = audit("show", changed, "--changes", "-o", "table", AUDIT_DSN=dsn, NO_COLOR="1")[1]

    assert f'    error_message: null → "{"x" * 59}…\n' in shown
    assert f'    error_message: null → "{LONG}"\n' in piped
    assert '    status: "pending" → "failed"' in shown
    assert DIGITS in piped


def test_a_task_as_json_is_the_body_of_the_service(dsn: str, changed: str, url: str) -> None:
    by_dsn = audit("show", changed, "-o", "json", AUDIT_DSN=dsn)
    by_url = audit("show", changed, "-o", "json", "--url", url, **NO_PROXY)

    assert (0, "") == (by_dsn[0], by_dsn[2])
    assert by_dsn == by_url
    assert get(f"{url}/api/v1/audit/tasks/{changed}")[1] == json.loads(by_url[1])
    assert DIGITS in by_url[1]


def test_events_as_json_are_whole_and_keep_all_digits(dsn: str, changed: str, url: str) -> None:
    execute(dsn, "SELECT sequence_task_events(10)")
    by_dsn = audit("show", changed, "--changes", "-o", "json", AUDIT_DSN=dsn)
    by_url = audit("show", changed, "--changes", "-o", "json", "--url", url, **NO_PROXY)

    assert (0, 0) == (by_dsn[0], by_url[0])
    assert DIGITS in by_dsn[1]
    assert by_dsn == by_url
    body = get(f"{url}/api/v1/audit/tasks/{changed}/history")[1]
    assert body == json.loads(by_url[1])
    assert ["recorded", "changed", "changed"] == [event["kind"] for event in body["events"]]
    assert {"from": None, "to": LONG} == body["events"][1]["changed"]["error_message"]


def test_a_history_has_all_pages(dsn: str, url: str) -> None:
    one = task(status="pending")
    audit("record", "-", given=lines(one), AUDIT_DSN=dsn)
    execute(
        dsn,
        "DO $$ BEGIN FOR n IN 1..2100 LOOP"
        f" UPDATE tasks SET error_message = n::text WHERE task_id = '{one['task_id']}';"
        " END LOOP; END $$",
    )

    for where in (("--dsn", dsn), ("--url", url)):
        arguments = ("show", str(one["task_id"]), "--changes", "-o", "json", *where)
        code, out, _ = audit(*arguments, **NO_PROXY)
        assert code == 0
        assert [str(n) for n in range(1, 2101)] == [
            event["changed"]["error_message"]["to"] for event in json.loads(out)["events"][1:]
        ]
    table = audit("show", str(one["task_id"]), "-o", "table", "--dsn", dsn, NO_COLOR="1")[1]
    assert 1 == table.count("TIMELINE")
    assert 2101 == len(table.partition("TIMELINE")[2].splitlines()) - 1


def test_events_as_csv_have_a_line_each(dsn: str, changed: str) -> None:
    options = ("--changes", "-o", "csv", "--columns", "kind,status,role")
    code, out, _ = audit("show", changed, *options, AUDIT_DSN=dsn)

    assert (0, "kind,status,role\nrecorded,pending,audit\n") == (code, out[:40])
    assert 4 == len(out.splitlines())


def test_a_history_without_events_says_so(dsn: str) -> None:
    task_id = record_before_the_log(dsn, 1)

    code, out, _ = audit("show", task_id, "-o", "table", AUDIT_DSN=dsn, NO_COLOR="1")
    assert (0, True) == (code, out.splitlines()[-1].startswith("no events: "))
    code, out, _ = audit("show", task_id, "--changes", "-o", "json", AUDIT_DSN=dsn)
    assert {"task_id": task_id, "events": [], "next_cursor": None} == json.loads(out)
    assert (0, "") == audit("show", task_id, "--changes", "-o", "tsv", AUDIT_DSN=dsn)[:2]


def test_a_task_that_cannot_be_shown(dsn: str, url: str) -> None:
    unknown = str(uuid.uuid4())

    assert fails_with(audit("show", unknown, AUDIT_DSN=dsn), 66, "no task has the id", unknown)
    assert fails_with(audit("show", unknown, "--url", url, **NO_PROXY), 66, "no task has the id")
    assert fails_with(audit("show", unknown, AUDIT_DSN=UNREACHABLE), 69, "does not answer")
    nowhere = ("--url", "http://127.0.0.1:1")
    assert fails_with(audit("show", unknown, *nowhere, **NO_PROXY), 69, "does not answer")
    wrong = ("--url", f"{url}/elsewhere")
    assert fails_with(audit("show", unknown, *wrong, **NO_PROXY), 69, "refuses the request")
    assert audit("show", "7", AUDIT_DSN=dsn)[0] == 2
    assert fails_with(audit("show", unknown, "--changes", "-o", "ids"), 2, "ids")


def test_a_service_with_keys_needs_one(dsn: str, changed: str) -> None:
    make = ("keys", "create", "--name", "reader", "--scope")
    key = audit(*make, "read", AUDIT_DSN=dsn)[1].strip()
    other = audit("keys", "create", "--name", "writer", "--scope", "record", AUDIT_DSN=dsn)[1]
    with serving("--workers", "1", AUDIT_DSN=dsn) as (_, url, _):
        where = {"AUDIT_URL": url, **NO_PROXY}
        refused = audit("show", changed, **where)
        forbidden = audit("show", changed, AUDIT_KEY=other.strip(), **where)
        shown = audit("show", changed, AUDIT_KEY=key, **where)

    assert fails_with(refused, 77, "key")
    assert fails_with(forbidden, 77, "read")
    assert shown[1].startswith(changed)
