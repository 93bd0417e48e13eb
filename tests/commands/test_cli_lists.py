"""`audit failures`, `audit query` and `audit service`: what they show, in each form of output."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.commandline import ENVIRONMENT, audit, fails_with, lines, on_terminal
from tests.commands.conftest import AnsweringServer
from tests.conftest import ago, execute, task
from tests.processes import AUDIT, serving

NO_PROXY = {"NO_PROXY": "*"}
GOLDEN = Path(__file__).parent / "golden"
FORMS = ("table", "wide", "tsv", "json", "ndjson", "csv", "ids")
IDS = [f"{n:08}-0000-4000-8000-00000000000{n}" for n in range(1, 6)]
HOSTILE = "\x1b[31mred\x1b[0m\ttab\nline \u202eright to left\x9b2J"


def made(number: int, **members: Any) -> dict[str, Any]:
    """A task of a fixed id and time, of a year that is over."""
    return task(
        task_id=IDS[number - 1], created_at=f"2020-03-0{number}T08:01:16.785907Z", **members
    )


TASKS = (
    made(1, status="pending", completed_at=None, outcome=None, services_touched=[]),
    made(2, completed_at="2020-03-02T08:06:07Z", outcome={"action_type": "run_playbook", "n": 1}),
    made(
        3,
        status="failed",
        request_text="Run the playbook of the week on the payments of the eastern region",
        services_touched=["payments", "recommendations-relay-of-the-eastern-region", "ledger"],
        completed_at="2020-03-05T10:06:07Z",
        error_message="health check failed: 3 of 5 replicas did not become ready in 300 seconds",
    ),
    made(
        4,
        status="rejected",
        request_text='=HYPERLINK("http://example.com")',
        services_touched=["a;b", "naïve ☃ 漢字"],
        completed_at="2020-03-04T08:01:17Z",
    ),
    made(5, status="failed", request_text=HOSTILE, completed_at="2020-03-05T08:01:20Z",
         error_message=HOSTILE),
)  # fmt: skip


@pytest.fixture
def recorded(dsn: str) -> str:
    assert audit("record", "-", given=lines(*TASKS), AUDIT_DSN=dsn)[0] == 0
    return dsn


@pytest.mark.parametrize(
    "arguments",
    [
        ("query",),
        ("failures", "--since", "2020-01-01"),
        ("service", "payments", "--tz", "Asia/Kathmandu"),
    ],
    ids=["query", "failures", "service"],
)
def test_every_form_on_terminals_and_in_a_pipe(recorded: str, arguments: tuple[str, ...]) -> None:
    """Run with GOLDEN=write to write the expected output anew, and read what has changed."""
    printed = []
    for form in FORMS:
        options = (*arguments, "-o", form)
        printed += [f"$ audit {' '.join(options)} | cat", audit(*options, AUDIT_DSN=recorded)[1]]
    for width in (40, 80, 120, 200):
        code, shown = on_terminal(width, *arguments, AUDIT_DSN=recorded, NO_COLOR="1")
        assert 0 == code
        assert max(map(cells, shown.splitlines())) <= width
        printed += [f"$ COLUMNS={width} audit {' '.join(arguments)}", shown]
    _, wide = on_terminal(80, *arguments, "-o", "wide", AUDIT_DSN=recorded, FORCE_COLOR="1")
    assert audit(*arguments, "-o", "wide", AUDIT_DSN=recorded)[1] == wide
    text = re.sub(r'"next_cursor":"[^"]*"', '"next_cursor":"…"', "\n".join(printed))

    golden = GOLDEN / f"{arguments[0]}.txt"
    if os.environ.get("GOLDEN") == "write":
        golden.write_text(text)
    assert golden.read_text() == text


def cells(line: str) -> int:
    from rich.cells import cell_len

    return cell_len(line)


@pytest.mark.parametrize("form", ["tsv", "csv", "ndjson", "json", "ids"])
def test_a_terminal_gets_the_same_data_as_a_pipe(dsn: str, form: str) -> None:
    harmless = [one for one in TASKS if one["request_text"] != HOSTILE]
    audit("record", "-", given=lines(*harmless), AUDIT_DSN=dsn)

    piped = audit("query", "-o", form, AUDIT_DSN=dsn)[1]
    assert (0, piped) == on_terminal(80, "query", "-o", form, AUDIT_DSN=dsn)
    assert piped


def test_the_form_is_a_table_on_a_terminal_and_tsv_elsewhere(recorded: str) -> None:
    assert "CREATED (UTC)" in on_terminal(80, "query", AUDIT_DSN=recorded)[1]
    piped = audit("query", AUDIT_DSN=recorded)[1]
    assert piped == audit("query", "-o", "tsv", AUDIT_DSN=recorded)[1]
    header, *rows = audit("query", "--header", AUDIT_DSN=recorded)[1].splitlines()
    assert header.split("\t")[:2] == ["task_id", "status"]
    assert rows == piped.splitlines()


def test_spreadsheets_run_no_cell_of_csv_and_split_none(dsn: str) -> None:
    texts = ["=1+1", "+1", "-1", "@A1", "\t=1", "\n=1", "\uff1d1", "a;=1", "b\t=1", 'c"=1']
    tasks = [task(request_text=text, services_touched=["a", "b"]) for text in texts]
    audit("record", "-", given=lines(*tasks), AUDIT_DSN=dsn)

    _, out, _ = audit(
        "query", "-o", "csv", "--columns", "request_text,services_touched", AUDIT_DSN=dsn
    )

    _, *rows = csv.reader(io.StringIO(out, newline=""))
    marked = [text if text[0] in "abc" else f"'{text}" for text in texts]
    assert sorted(marked) == sorted(row[0] for row in rows)
    # Users also let semicolons and tabs separate cells. They do not separate what is quoted.
    outside_quotes = re.sub(r'"[^"]*"', "", out)
    assert ";" not in outside_quotes
    assert "\t" not in outside_quotes


@pytest.mark.parametrize("form", FORMS)
def test_nothing_of_a_task_can_move_the_cursor(recorded: str, form: str) -> None:
    _, shown = on_terminal(120, "query", "-o", form, AUDIT_DSN=recorded, NO_COLOR="1")

    assert [] == re.findall(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", shown)


def test_service_and_database_print_the_same_json(recorded: str) -> None:
    pages = (("--limit", "2"), ("--all",), ("--limit", "5"), ("--status", "failed"))
    with serving("--workers", "1", "--max-page-bytes", "1048576", AUDIT_DSN=recorded) as (
        _,
        url,
        _,
    ):
        for name in ("query", "failures"):
            for options in pages if name == "query" else pages[:3]:
                given = (name, "--since", "2020-01-01", "-o", "json", *options)
                by_url = audit(*given, "--url", url, **NO_PROXY)
                by_dsn = audit(*given, "--dsn", recorded)
                assert by_url == by_dsn
                assert json.loads(by_url[1])["tasks"]
        route = f"{url}/api/v1/audit/query?limit=50"
        body = subprocess.check_output(["curl", "-s", "--noproxy", "*", route], text=True)
        assert body + "\n" == audit("query", "-o", "json", "--url", url, **NO_PROXY)[1]


def test_pages_of_a_list_are_merged(dsn: str) -> None:
    execute(
        dsn,
        "INSERT INTO tasks (task_id, request_text, status, created_at)"
        " SELECT gen_random_uuid(), 'x', 'failed', now() - n * interval '1 second'"
        " FROM generate_series(1, 2500) AS n",
    )

    everything = json.loads(audit("query", "--all", "-o", "json", AUDIT_DSN=dsn)[1])
    code, most, note = audit("query", "--limit", "2400", "-o", "json", AUDIT_DSN=dsn)
    ids = audit("query", "--all", "-o", "ids", AUDIT_DSN=dsn)[1].split()

    assert (2500, 0, None) == tuple(everything[name] for name in ("total", "offset", "next_cursor"))
    assert ids == [one["task_id"] for one in everything["tasks"]]
    assert 2500 == len(set(ids))
    assert 0 == code
    shown = json.loads(most)
    assert ids[:2400] == [one["task_id"] for one in shown["tasks"]]
    assert (2400, 2500, True) == (shown["limit"], shown["total"], bool(shown["next_cursor"]))
    assert "audit: 2,400 of 2,500 tasks; --all shows all, or --limit N\n" == note
    assert 2500 == len(audit("failures", "--all", AUDIT_DSN=dsn)[1].splitlines())


def test_a_long_list_is_cut_to_50_and_says_so(dsn: str) -> None:
    audit("record", "-", given=lines(*(task() for _ in range(51))), AUDIT_DSN=dsn)

    _, out, note = audit("query", AUDIT_DSN=dsn)
    assert 50 == len(out.splitlines())
    assert "audit: 50 of 51 tasks; --all shows all, or --limit N\n" == note
    assert (51, "") == (len(audit("query", "--limit", "51", AUDIT_DSN=dsn)[1].splitlines()), "")


def test_no_tasks_are_an_empty_list(dsn: str) -> None:
    assert (0, "", "") == audit("query", AUDIT_DSN=dsn)
    assert (0, "", "") == audit("query", "-o", "table", AUDIT_DSN=dsn)
    assert 0 == len(json.loads(audit("query", "-o", "json", AUDIT_DSN=dsn)[1])["tasks"])
    assert (0, "") == on_terminal(80, "query", AUDIT_DSN=dsn)


def test_filters_choose_tasks(recorded: str) -> None:
    def chosen(*options: str) -> list[int]:
        code, out, _ = audit("query", "-o", "ids", *options, AUDIT_DSN=recorded)
        assert 0 == code
        return [int(line[:8]) for line in out.splitlines()]

    assert [5, 3] == chosen("--status", "failed")
    assert [5, 4, 3] == chosen("--status", "failed", "--status", "rejected")
    assert [3] == chosen("--service", "payments", "--service", "ledger")
    assert [5, 4, 3, 2] == chosen("--intent", "run_playbook", "--intent", "deploy_service")
    assert [2] == chosen("--outcome", '{"n": 1}')
    assert [3, 2] == chosen("--since", "2020-03-02 08:01:16", "--until", "2020-03-04")
    assert [4] == chosen(
        "--since", "2020-03-04 09:01", "--until", "2020-03-04T08:02:00Z", "--tz", "Europe/Berlin"
    )
    assert [] == chosen("--last", "365d") == chosen("--since", "90m", "--until", "1s")
    assert [] == chosen("--created-by", "ada") == chosen("--project-id", IDS[0])


def test_recent_times_are_short(dsn: str) -> None:
    audit("record", "-", given=lines(task(), task(created_at=ago(days=400))), AUDIT_DSN=dsn)

    _, shown = on_terminal(80, "query", AUDIT_DSN=dsn, NO_COLOR="1")
    newest, oldest = (line for line in shown.splitlines() if "completed" in line)
    assert re.match(r" *(today|[A-Z][a-z]{2} [ \d]\d) \d\d:\d\d:\d\d  ✔ completed  ", newest)
    assert re.match(r" *\d{4}-\d\d-\d\d \d\d:\d\d  ✔ completed  ", oldest)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["query", "--status", "fialed"], "'pending', 'approved'"),
        (["query", "--last", "8y"], "15m, 24h, 7d or 8w"),
        (["query", "--last", "7d", "--since", "2020-01-01"], "not together"),
        (["failures", "--last", "91d"], "at most 90d"),
        (["query", "--since", "2020-13-01"], "--since: month"),
        (["query", "--tz", "Nowhere/X"], "no time zone 'Nowhere/X'"),
        (["query", "--outcome", "{"], "outcome: not JSON"),
        (["query", "--columns", "nope"], "no column 'nope'; there are task_id, "),
        (["query", "--columns", "status", "-o", "ids"], "--columns: ids has no columns"),
        (["query", "--limit", "0"], "--limit"),
        (["query", "--limit", "3", "--all"], "--limit: not together with --all"),
        (["query", "--service", ""], "--service: must not be empty"),
        (["query", "--created-by", ""], "--created-by: must not be empty"),
        (["query", "--last", ""], "--last: must be a span"),
    ],
    ids=str,
)
def test_wrong_values_end_with_2(dsn: str, url: str, options: list[str], part: str) -> None:
    for where in (("--dsn", dsn), ("--url", url)):
        assert fails_with(audit(*options, *where, **NO_PROXY), 2, part)


def test_exit_status_says_whether_there_are_tasks(recorded: str) -> None:
    since = ("--since", "2020-01-01", "--exit-status", "-o", "ids")
    assert (1, 2) == status_and_lines(audit("failures", *since, AUDIT_DSN=recorded))
    assert (0, 0) == status_and_lines(
        audit("failures", "--service", "none", *since, AUDIT_DSN=recorded)
    )


def status_and_lines(result: tuple[int | None, str, str]) -> tuple[int | None, int]:
    return result[0], len(result[1].splitlines())


def test_a_service_that_is_busy_is_asked_again() -> None:
    page = '{"tasks":[],"total":0,"limit":50,"offset":0,"next_cursor":null}'
    with AnsweringServer(503, 429, 200, body=page) as server:
        code, out, notes = audit("query", "-o", "json", "--url", server.url, **NO_PROXY)
    with AnsweringServer(503) as busy:
        result = audit("query", "--url", busy.url, **NO_PROXY)

    assert (0, page + "\n", 3) == (code, out, len(server.keys))
    assert 2 == notes.count("trying again in 1 s")
    assert (69, 5) == (result[0], len(busy.keys))
    assert "does not answer" in result[2].splitlines()[-1]


@pytest.mark.parametrize("body", ["hello", "[]", "{}"])
def test_what_is_not_the_service_is_refused(body: str) -> None:
    with AnsweringServer(200, body=body) as server:
        for form in ("json", "tsv"):
            result = audit("query", "-o", form, "--url", server.url, **NO_PROXY)
            assert fails_with(result, 69, "is not a task-audit service")


def test_a_closed_pipe_is_a_success_without_a_word(dsn: str) -> None:
    execute(
        dsn,
        "INSERT INTO tasks (task_id, request_text, status)"
        " SELECT gen_random_uuid(), repeat('x', 1000), 'failed' FROM generate_series(1, 3000)",
    )
    done = subprocess.run(
        ["bash", "-c", f"{AUDIT} query --all -o ndjson | head -1; exit ${{PIPESTATUS[0]}}"],
        env={**ENVIRONMENT, "AUDIT_DSN": dsn},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    notes = [line for line in done.stderr.splitlines() if "database" not in line]

    assert (0, [], 1) == (done.returncode, notes, len(done.stdout.splitlines()))
