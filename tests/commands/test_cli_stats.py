"""`audit stats`: bars by time, the most frequent values, and durations."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from audit.commands.rendering.bars import bar
from audit.commands.rendering.screen import Look
from tests.commandline import audit, fails_with, lines, on_terminal
from tests.conftest import task

NO_PROXY = {"NO_PROXY": "*"}
START = datetime(2020, 3, 2, 12, tzinfo=UTC)
WINDOW = ("--since", "2020-03-01", "--until", "2020-03-05")


def made(day: int, status: str, seconds: float, **members: Any) -> dict[str, Any]:
    created = START + timedelta(days=day)
    return task(
        status=status,
        created_at=created,
        completed_at=None if status == "pending" else created + timedelta(seconds=seconds),
        **members,
    )


TASKS = (
    *(made(0, "completed", n, services_touched=["payments", "ledger"]) for n in range(1, 9)),
    made(0, "failed", 90),
    *(made(1, "completed", 10, outcome={"action_type": "rotate_secret"}) for _ in range(4)),
    *(made(1, "failed", 3700, created_by="ada\x1b[31m") for _ in range(4)),
    made(2, "pending", 0, outcome=None),
)


@pytest.fixture
def recorded(dsn: str) -> str:
    assert audit("record", "-", given=lines(*TASKS), AUDIT_DSN=dsn)[0] == 0
    return dsn


@pytest.mark.parametrize(
    "options",
    [
        "--by day",
        "--by hour --tz Asia/Kathmandu",
        "--status failed",
        "--created-by nobody",
        "--facet status --facet service --facet intent --facet created_by --facet project_id",
        "--facet service --top 1",
        "--durations",
        "--durations --by intent",
        "--durations --by day",
    ],
)
def test_service_and_database_print_the_same_json(recorded: str, url: str, options: str) -> None:
    given = ("stats", *WINDOW, *options.split(), "-o", "json")
    by_url = audit(*given, "--url", url, **NO_PROXY)

    assert (0, "") == (by_url[0], by_url[2])
    assert by_url == audit(*given, "--dsn", recorded)


def test_bars_are_drawn_by_day(recorded: str) -> None:
    _, shown = on_terminal(80, "stats", *WINDOW, "--by", "day", AUDIT_DSN=recorded, NO_COLOR="1")
    head, rate, _, header, *rows = shown.splitlines()

    assert "18 tasks  ✔ 12 completed  ✖ 5 failed  ○ 1 pending" == head
    assert "29.4% of the tasks that ran to their end failed" == rate
    assert ["DAY", "(UTC)", "TASKS", "FAILED"] == header.split()
    assert ["2020-03-01 Sun", "2020-03-02 Mon", "2020-03-03 Tue", "2020-03-04 Wed"] == [
        row[:14] for row in rows
    ]
    numbers = [[int(n) for n in re.findall(r" (\d+)(?: |$)", row[14:])] for row in rows]
    assert [[0, 0], [9, 1], [8, 4], [1, 0]] == numbers
    blocks = [re.findall("[█▏▎▍▌▋▊▉]+", row) for row in rows]
    assert [0, 2, 2, 1] == [len(row) for row in blocks]
    assert len(blocks[1][0]) > len(blocks[2][0]) > len(blocks[3][0])
    assert len(blocks[2][1]) > len(blocks[1][1])
    assert max(map(len, rows)) <= 80


def test_a_part_of_a_bar_is_marked(recorded: str) -> None:
    given = ("stats", "--since", "2020-03-02 12:00", "--until", "2020-03-04", "--by", "day")
    _, shown = on_terminal(80, *given, AUDIT_DSN=recorded, NO_COLOR="1")

    assert "2020-03-02 Mon ~" in shown
    assert "2020-03-03 Tue  " in shown
    assert shown.endswith("~ only a part of it is in the window\n")


@pytest.mark.parametrize("width", [40, 80, 120, 200])
@pytest.mark.parametrize(
    "options",
    ["--by hour", "--facet service --facet created_by", "--durations --by intent"],
    ids=["histogram", "facets", "durations"],
)
def test_no_line_is_wider_than_the_terminal(recorded: str, options: str, width: int) -> None:
    given = ("stats", *WINDOW, *options.split())
    for variables in ({}, {"PYTHONIOENCODING": "ascii"}):
        code, shown = on_terminal(width, *given, AUDIT_DSN=recorded, NO_COLOR="1", **variables)
        drawn = shown.partition("\n\n")[2] if "--durations" not in options else shown
        assert 0 == code
        assert max(map(len, drawn.splitlines())) <= width
        assert shown.isascii() or not variables


def test_nothing_of_a_task_can_move_the_cursor(recorded: str) -> None:
    _, shown = on_terminal(
        80, "stats", *WINDOW, "--facet", "created_by", AUDIT_DSN=recorded, NO_COLOR="1"
    )

    assert r"ada\x1b[31m" in shown
    assert "\x1b" not in shown


def test_values_are_drawn_by_facet(recorded: str) -> None:
    facets = ("--facet", "service", "--facet", "created_by", "--top", "1")
    _, shown = on_terminal(80, "stats", *WINDOW, *facets, AUDIT_DSN=recorded, NO_COLOR="1")

    assert "18 tasks" == shown.splitlines()[0]
    assert re.search(r"SERVICE +TASKS\npayments +18  █+\nthere are more values", shown)
    assert re.search(r"CREATED BY +TASKS\n\(none\) +14  █+\n", shown)


def test_durations_are_percentiles(recorded: str) -> None:
    given = ("stats", *WINDOW, "--durations", "--by", "intent")
    _, shown = on_terminal(80, *given, AUDIT_DSN=recorded, NO_COLOR="1")
    header, everything, first, second, note = shown.splitlines()

    assert "INTENT TASKS P50 P90 P95 P99 MAX".split() == header.split()
    assert "all 17 10s 1h 01m 1h 01m 1h 01m 1h 01m".split() == everything.split()
    assert ["deploy_service", "13"] == first.split()[:2]
    assert "rotate_secret 4 10s 10s 10s 10s 10s".split() == second.split()
    assert "1 matching, not completed or failed" == note


@pytest.mark.parametrize(
    ("options", "header", "rows"),
    [
        ("--by day", "start_utc,end_utc,partial,total,pending,approved", 4),
        ("--facet status --facet intent", "facet,value,total", 6),
        ("--durations --by intent", "value,tasks,p50_seconds,p90_seconds", 3),
        ("--durations --by day", "value,tasks,p50_seconds,p90_seconds", 5),
    ],
)
def test_programs_get_rows(recorded: str, options: str, header: str, rows: int) -> None:
    given = ("stats", *WINDOW, *options.split(), "-o")
    _, csv, _ = audit(*given, "csv", AUDIT_DSN=recorded)
    _, tsv, _ = audit(*given, "tsv", AUDIT_DSN=recorded)
    _, ndjson, _ = audit(*given, "ndjson", AUDIT_DSN=recorded)

    assert csv.startswith(header)
    assert rows + 1 == len(csv.splitlines())
    assert rows == len(tsv.splitlines())
    assert rows == len([json.loads(line) for line in ndjson.splitlines()])


def test_no_tasks_are_no_bars(dsn: str) -> None:
    assert (0, "0 tasks\n") == on_terminal(80, "stats", AUDIT_DSN=dsn, NO_COLOR="1")
    assert (0, "", "") == audit("stats", AUDIT_DSN=dsn)
    assert 0 == on_terminal(80, "stats", "--durations", AUDIT_DSN=dsn)[0]
    assert 0 == on_terminal(80, "stats", "--facet", "intent", AUDIT_DSN=dsn)[0]


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ("--by fortnight", "--by: must be one of auto, minute, hour"),
        ("--by intent", "with --durations also intent"),
        ("--facet nope", "'status', 'service'"),
        ("--facet status --by day", "--facet: not together"),
        ("--top 3", "--top: only together"),
        ("-o ids", "ids"),
        ("--columns start_utc -o json", "json has no columns"),
        ("--since 2020-01-01 --until 2024-01-01 --by hour", "at most 400"),
    ],
    ids=str,
)
def test_wrong_values_end_with_2(dsn: str, url: str, options: str, part: str) -> None:
    for where in (("--dsn", dsn), ("--url", url)):
        assert fails_with(audit("stats", *options.split(), *where, **NO_PROXY), 2, part)


def test_a_bar_is_in_proportion_and_never_empty() -> None:
    look = Look(80, 24, is_styled=False, encoding="utf-8")
    plain = Look(80, 24, is_styled=False, encoding="ascii")

    assert ["", "▏", "████▌", "█████████"] == [bar(n, 1000, 9, look) for n in (0, 1, 500, 1000)]
    assert ["", "#", "####", "#########"] == [bar(n, 1000, 9, plain) for n in (0, 1, 490, 1000)]
    assert "" == bar(0, 0, 9, look)
