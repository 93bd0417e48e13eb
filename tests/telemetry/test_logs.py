"""The log: a line for each request that is sampled, in text or JSON, and none that lies."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import urllib.request
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from audit.access.identity import Scope
from audit.access.keys import create_key
from audit.postgres.pool import open_pool
from audit.settings import LogFormat, Settings
from audit.telemetry import logs
from audit.telemetry.request_log import Entry, RequestLog
from audit.web.app import create_app
from tests.conftest import Client, execute, task
from tests.processes import API, connected, fetch, serving
from tests.waiting import wait_until

NOBODY = f"{API}/tasks/00000000-0000-0000-0000-000000000000"


def ended(process: subprocess.Popen[str]) -> list[str]:
    """The lines of the log, once the service has ended."""
    process.terminate()
    return process.communicate()[1].splitlines()


# --- requests -------------------------------------------------------------------------------------


def test_a_request_is_one_object_of_json(dsn: str) -> None:
    secret = "zebra"  # noqa: S105
    with serving(
        "--dsn", dsn, "--log-format", "json", "--log-sample", "1", log=subprocess.PIPE
    ) as (process, url, _):
        body = json.dumps([task(request_text=secret, created_by=secret) for _ in range(3)])
        headers = {"Content-Type": "application/json", "X-Request-ID": "a-1"}
        post = urllib.request.Request(f"{url}{API}/tasks", body.encode(), headers)
        urllib.request.urlopen(post).close()
        fetch(f"{url}{API}/by-service/payments?limit=2&created_by={secret}")
        fetch(f"{url}{API}/query?{secret}={secret}")
        fetch(f"{url}/{secret}")
        logged = [json.loads(line) for line in ended(process)]

    times = [datetime.fromisoformat(line.pop("time")) for line in logged]
    assert all(abs(time - datetime.now(UTC)) < timedelta(minutes=1) for time in times)
    assert all(0 < line.pop("duration_ms") < 60_000 for line in logged)
    ids = [line.pop("request_id") for line in logged]
    assert "a-1" == ids[0]
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in ids[1:])
    common = {
        "level": "info", "message": "request", "client": "127.0.0.1", "key_name": None,
        "reason": None,
    }  # fmt: skip
    route = API + "/by-service/{service_name}"
    expected: list[dict[str, Any]] = [
        {"route": f"{API}/tasks", "method": "POST", "status": 201, "rows": 3},
        {"route": route, "method": "GET", "status": 200, "rows": 2},
        {"route": f"{API}/query", "method": "GET", "status": 422, "rows": None},
        {"route": "unmatched", "method": "GET", "status": 404, "rows": None},
    ]
    ran = [set(line.pop("statements")) for line in logged]
    assert [{**common, **one} for one in expected] == logged
    assert {"record_tasks", "transaction"} <= ran[0]
    assert {"read_changes", "list_tasks"} <= ran[1]
    assert [set(), set()] == ran[2:]
    assert secret not in json.dumps(logged)


def test_a_request_is_one_line_of_text(dsn: str) -> None:
    with serving("--dsn", dsn, "--log-sample", "1", log=subprocess.PIPE) as (process, url, _):
        headers = {"X-Request-ID": "a-1"}
        urllib.request.urlopen(urllib.request.Request(f"{url}{API}/query", headers=headers)).close()
        (line,) = ended(process)

    assert re.fullmatch(
        r"[0-9-]{10}T[0-9:.]{12}Z INFO GET /api/v1/audit/query 200 [0-9.]+ ms rows=0"
        r" statements=list_tasks,locate_page,read_changes client=127\.0\.0\.1 request=a-1",
        line,
    )


def test_without_a_sample_only_failures_are_logged(dsn: str) -> None:
    options = ("--log-format", "json", "--statement-timeout-seconds", "1")
    with (
        serving("--dsn", dsn, *options, log=subprocess.PIPE) as (process, url, _),
        psycopg.connect(dsn) as other,
    ):
        assert [200, 404] == [fetch(f"{url}{API}/query"), fetch(f"{url}{NOBODY}")]
        other.execute("LOCK TABLE tasks IN ACCESS EXCLUSIVE MODE")
        assert 504 == fetch(f"{url}{NOBODY}")
        other.rollback()
        logged = [json.loads(line) for line in ended(process)]

    (failed,) = [line for line in logged if line["message"] == "request"]
    assert ("warning", 504, ["get_task"]) == (
        failed["level"], failed["status"], failed["statements"]
    )  # fmt: skip
    others = [line["message"] for line in logged if line is not failed]
    assert any(failed["request_id"] in message for message in others)


def test_a_share_of_the_requests_is_logged(dsn: str) -> None:
    with serving("--dsn", dsn, "--log-sample", "0.5", log=subprocess.PIPE) as (process, url, _):
        assert [200] * 200 == [fetch(f"{url}/healthz") for _ in range(200)]
        logged = ended(process)

    assert 50 < len(logged) < 150  # by chance, once in 10 ** 12 runs it is not


def test_what_is_no_http_does_not_fill_the_log(dsn: str) -> None:
    with serving("--dsn", dsn, "--log-sample", "1", log=subprocess.PIPE) as (process, url, _):
        for noise in (b"\x16\x03\x01\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"):
            for _ in range(20):
                with connected(url) as connection:
                    connection.sendall(noise)
                    assert b" 400 " in connection.recv(4096)
        assert [] == ended(process)


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_flood_of_failures_does_not_fill_the_log(
    log_format: LogFormat, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = 1000.5
    monkeypatch.setattr("time.time", lambda: clock)
    root = logging.getLogger()
    before, level = root.handlers.copy(), root.level
    try:
        logs.set_up(log_format)
        for number in range(500):
            logging.getLogger("audit").warning("request %d failed", number)
        logging.getLogger("audit").warning("something else")
        clock += 1
        logging.getLogger("audit").warning("request %d failed", 500)
    finally:
        root.handlers[:] = before
        root.setLevel(level)

    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 22
    if log_format == "json":
        logged = [json.loads(line) for line in lines]
        assert [line.get("left_out") for line in logged] == [None] * 20 + [480, None]
        assert [logged[0]["message"], logged[-1]["message"]] == [
            "request 0 failed",
            "request 500 failed",
        ]
    else:
        assert [line.partition(" ")[2] for line in lines[20:]] == [
            "WARNING something else (480 warnings were left out before this one)",
            "WARNING request 500 failed",
        ]


def test_of_a_flood_of_failed_requests_some_are_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1000.5)
    unsampled, sampled = RequestLog(0), RequestLog(1)

    assert sum(unsampled.wants(503) for _ in range(500)) == 20
    assert not any(unsampled.wants(200) for _ in range(500))
    assert all(sampled.wants(200) for _ in range(500))


async def test_the_name_of_the_key_is_reported(
    dsn: str,
    aiohttp_client: Callable[..., Awaitable[Client]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with open_pool(Settings(pool_size=1), dsn) as pool:
        key, _ = await create_key(pool, "deployer", frozenset([Scope.READ]))
    client = await aiohttp_client(create_app(Settings(pool_size=1, log_sample=1), dsn))
    caplog.set_level(logging.INFO, "audit.requests")
    await client.get("/api/v1/audit/query", headers={"Authorization": f"Bearer {key}"})

    (logged,) = [record for record in caplog.records if record.name == "audit.requests"]
    assert "deployer" == logged.__dict__["entry"]["key_name"]


# --- lines ----------------------------------------------------------------------------------------


@pytest.fixture
def written(capsys: pytest.CaptureFixture[str]) -> Any:
    """Return what the log writes in a format."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def write(log_format: LogFormat, tell: Callable[[], None]) -> str:
        logs.set_up(log_format)
        try:
            tell()
        finally:
            root.handlers[:] = handlers
            root.setLevel(level)
            logging.getLogger("audit.requests").setLevel(logging.NOTSET)
        return capsys.readouterr().err

    return write


HOSTILE = "a\nERROR forged\r\x1b[31m\x9b\x7f\u2028\x00\tz"


def fail() -> None:
    try:
        int(HOSTILE)
    except ValueError:
        logging.getLogger("audit").exception("it failed: %s", HOSTILE)


def test_text_has_no_control_characters(written: Any) -> None:
    first, *trace = written("text", fail).split("\n")

    escaped = r"a\nERROR forged\r\x1b[31m\x9b\x7f\u2028\x00\tz"
    assert f"ERROR it failed: {escaped}" == first.partition(" ")[2]
    assert "Traceback (most recent call last):" == trace[0]
    assert not set(HOSTILE) - set("aERROR forged[31mz\n") & set("".join(trace))


def test_json_is_one_line_of_ascii(written: Any) -> None:
    (line,) = written("json", fail).splitlines()
    logged = json.loads(line)

    assert line.isascii()
    assert line.isprintable()
    assert ("error", f"it failed: {HOSTILE}") == (logged["level"], logged["message"])
    assert logged["exception"].startswith("Traceback (most recent call last):\n")


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_request_is_one_line_whatever_it_contains(written: Any, log_format: LogFormat) -> None:
    entry: Entry = {
        "request_id": None, "client": HOSTILE, "key_name": HOSTILE, "route": "unmatched",
        "method": HOSTILE,
        "status": 499, "duration_ms": 1.5, "rows": None, "statements": [],
        "reason": HOSTILE,
    }  # fmt: skip

    line = written(log_format, lambda: RequestLog(0).log(entry))

    assert "\n" == line[-1]
    assert line[:-1].isprintable()
    assert line.isascii()


# --- in the database ------------------------------------------------------------------------------


def test_the_database_shows_which_file_runs(dsn: str) -> None:
    with serving("--dsn", dsn) as (_, url, _), psycopg.connect(dsn) as other:
        other.execute("LOCK TABLE tasks IN ACCESS EXCLUSIVE MODE")
        connection = connected(url)
        connection.sendall(f"GET {API}/query HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        running = (
            "SELECT 1 FROM pg_stat_activity WHERE application_name = 'task-audit'"
            " AND datname = current_database() AND wait_event_type = 'Lock'"
            " AND query LIKE '-- list_tasks: %'"
        )
        wait_until(lambda: execute(dsn, running))
        other.rollback()
        connection.close()
