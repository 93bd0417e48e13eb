"""Hostile values in every part of a request cause no 500 and reveal nothing."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

import aiohttp
import pytest
from yarl import URL

from audit.history.query import AuditQuery, FailuresQuery, TaskFilter
from audit.history.statistics_query import DurationsQuery, FacetsQuery, HistogramQuery
from tests.commandline import audit
from tests.conftest import _database, task
from tests.processes import serving

API = "/api/v1/audit"
PASSWORD = "canary-of-the-dsn"  # noqa: S105 - of nobody
#: What no answer may hold: of the database, of the code, of the machine.
NEVER_SAID = (
    PASSWORD, "canary", "SELECT", "INSERT", "UPDATE tasks", "pg_", "asyncpg", "psycopg", "aiohttp",
    "Traceback", ".py", "sqlstate", "task_counts", "task_keys", "postgres",
)  # fmt: skip

#: Percent-encoded, as they go over the wire.
TEXTS = {
    "NUL": "a%00b",
    "a lone surrogate": "%ED%A0%80",
    "bytes that are no text": "%FF%FE",
    "a byte cut off": "%C3",
    "a broken percent": "%zz",
    "overlong": "%C0%AF",
    "newline": "a%0ALevel%3A%20INFO",
    "an escape sequence": "%1B%5B31mred%1B%5D0%3Bx%07",
    "right to left": "%E2%80%AEgnp.exe",
    "quotes": quote("' OR '1'='1' --"),
    "two statements": quote("x'); DROP TABLE tasks; --"),
    "a pattern": quote("%_\\%"),
    "a template": quote("{0.__class__}${7*7}{{7*7}}%s%n"),
    "a tag": quote("<script>alert(1)</script>"),
    "a path": quote("../../etc/passwd", safe=""),
    "an array of PostgreSQL": quote("{a,b}"),
    "an element of it": quote('"},{"'),
    "long": "a" * 6000,
    "astral": quote("\N{MATHEMATICAL SCRIPT CAPITAL X}" * 200),
    "combining": quote("e\u0301" * 120),
    "not normal": quote("\N{LATIN SMALL LIGATURE FI}\N{ANGSTROM SIGN}"),
    "nothing": "",
    "blanks": "%20%09%20",
}
NUMBERS = {
    "minus one": "-1",
    "zero": "0",
    "beyond int4": "2147483648",
    "beyond int8": "9223372036854775808",
    "huge": "9" * 4400,
    "a float": "1.0",
    "an exponent": "1e3",
    "underscores": "1_000",
    "a plus": "%2B5",
    "blanks around": "%205%20",
    "other digits": quote("\N{ARABIC-INDIC DIGIT FIVE}"),
    "hexadecimal": "0x10",
    "true": "true",
    "null": "null",
    "NaN": "NaN",
    "infinity": "Infinity",
}
TIMES = {
    "an epoch": "1700000000",
    "a day": "2026-01-01",
    "no zone": "2026-01-01T00:00:00",
    "year 0": "0000-01-01T00:00:00Z",
    "year 10000": "10000-01-01T00:00:00Z",
    "30 February": "2026-02-30T00:00:00Z",
    "hour 25": "2026-01-01T25:00:00Z",
    "second 61": "2026-01-01T00:00:61Z",
    "a zone too far": "2026-01-01T00:00:00%2B99:99",
    "infinity": "infinity",
    "now": "now",
    "digits without end": "2026-01-01T00:00:00." + "1" * 3000 + "Z",
}
JSONS = {
    "no JSON": "{",
    "an array": "[]",
    "NaN": quote('{"a":NaN}'),
    "NUL inside": quote('{"a":"\\u0000"}'),
    "a lone surrogate inside": quote('{"a":"\\ud800"}'),
    "deep": quote("[" * 1500 + "]" * 1500),
    "deep object": quote('{"a":' * 800 + "1" + "}" * 800),
    "a huge number": quote('{"a":1' + "0" * 3000 + "}"),
    "an exponent": quote('{"a":1e999999}'),
    "twice the same name": quote('{"a":1,"a":2}'),
}
VALUES = {**TEXTS, **NUMBERS, **TIMES, **JSONS}
#: What each text parameter equals exactly: none of the values does, so none is to match.
EXACT = {"service", "intent", "created_by"}
NUMBERS_TAKEN = {("offset", kind) for kind in ("zero", "beyond int4", "an epoch")}
ROUTES: dict[str, type[TaskFilter]] = {
    "failures": FailuresQuery,
    "query": AuditQuery,
    "by-service/payments": AuditQuery,
    "statistics/histogram": HistogramQuery,
    "statistics/facets": FacetsQuery,
    "statistics/durations": DurationsQuery,
}
#: What a request must have besides the parameter in question.
NEEDED = {"statistics/facets": "facet=status"}
PARAMETERS = [(route, name) for route, model in ROUTES.items() for name in model.model_fields]


class Running(NamedTuple):
    url: str
    key: str
    log: Path


@pytest.fixture(scope="module")
def running(
    postgres: str, template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    log = tmp_path_factory.mktemp("hostile") / "log"
    for dsn in _database(postgres, template):
        scopes = ("--scope", "read", "--scope", "record")
        key = audit("keys", "create", "--name", "k", *scopes, AUDIT_DSN=dsn)[1].strip()
        secret = dsn.replace("audit@", f"audit:{PASSWORD}@")
        options = ("--workers", "2", "--rate-per-second", "0")
        with (
            log.open("wb") as errors,
            serving(*options, log=errors, AUDIT_DSN=secret) as (_, url, _),
        ):
            yield Running(url, key, log)


async def send(
    session: aiohttp.ClientSession, method: str, running: Running, path: str, **parts: Any
) -> tuple[int, str, str]:
    headers = {"Authorization": f"Bearer {running.key}", **parts.pop("headers", {})}
    async with session.request(
        method, URL(f"{running.url}{API}{path}", encoded=True), headers=headers, **parts
    ) as response:
        text = (await response.read()).decode()
        return response.status, text, str(response.headers)


def hold_to_rules(answer: tuple[int, str, str], sent: str) -> None:
    status, text, headers = answer
    assert status < 500, (sent[:200], text)
    if status >= 400:
        problem = json.loads(text)
        assert problem["status"] == status
        assert len(text) < 20_000, sent[:200]
        for word in NEVER_SAID:
            assert word not in text.replace(sent, "") or word in sent, (sent[:200], text)
    for word in (PASSWORD, "Python/", "aiohttp"):
        assert word not in headers


@pytest.mark.parametrize(("route", "name"), PARAMETERS)
async def test_hostile_parameters(running: Running, route: str, name: str) -> None:
    async with aiohttp.ClientSession() as session:
        for kind, value in VALUES.items():
            others = NEEDED.get(route, "") if route.startswith("statistics") else "limit=1"
            if name in others:
                others = ""
            sent = f"/{route}?{name}={value}&{others}".removesuffix("&")
            answer = await send(session, "GET", running, sent)

            hold_to_rules(answer, sent)
            if answer[0] == 200 and name in EXACT:
                found = json.loads(answer[1])
                assert found.get("total", found.get("tasks")) == 0, kind
            if name in {"limit", "days", "offset", "buckets", "top"} and answer[0] == 200:
                assert (name, kind) in NUMBERS_TAKEN
            if name in {"since", "until", "cursor", "project_id", "status", "facet", "tz", "by"}:
                assert answer[0] in (400, 422), kind


async def test_hostile_paths(running: Running) -> None:
    async with aiohttp.ClientSession() as session:
        for value in VALUES.values():
            for method, path in (
                ("GET", f"/by-service/{value}"),
                ("GET", f"/tasks/{value}"),
                ("PATCH", f"/tasks/{value}"),
                ("DELETE", f"/tasks/{value}"),
                ("GET", f"/{value}"),
                ("GET", f"/query?{value}=1"),
            ):
                answer = await send(session, method, running, path)

                hold_to_rules(answer, path)
                assert answer[0] != 200 or json.loads(answer[1])["total"] == 0


HEADERS = (
    "If-None-Match", "Accept-Encoding", "Accept", "X-Request-ID", "Content-Type", "Range", "Cookie",
    "Content-Encoding", "X-Forwarded-For", "Traceparent", "Upgrade", "X-HTTP-Method-Override",
)  # fmt: skip
HEADER_VALUES = (
    "", "*", '"', 'W/"', 'W/"x", ' * 900, "gzip;q=" + "9" * 3000, "text/plain; charset=\x80",
    "../../x", "${jndi:ldap://x}", "a" * 8000, "application/json; charset=utf-16", "DELETE",
    "bytes=0-0,0-0", "00-0-0-0", "websocket", "\t x", "ünïcödé",
)  # fmt: skip


@pytest.mark.parametrize("name", HEADERS)
async def test_hostile_headers(running: Running, name: str) -> None:
    async with aiohttp.ClientSession() as session:
        for value in HEADER_VALUES:
            for method, path in (("GET", "/query?limit=1"), ("POST", "/tasks")):
                answer = await send(
                    session, method, running, path, headers={name: value}, data=None
                )

                hold_to_rules(answer, value)
                assert method == "GET" or answer[0] >= 400, (name, value)


GOOD = json.dumps(task(task_id=None))
BODIES = {
    "nothing": b"",
    "blanks": b" \n\t",
    "no JSON": b"{",
    "null": b"null",
    "text": b'"x"',
    "a byte order mark": b"\xef\xbb\xbf" + GOOD.encode(),
    "UTF-16": GOOD.encode("utf-16"),
    "bytes that are no text": b'{"request_text":"\xff"}',
    "NUL": b'{"request_text":"a\x00b"}',
    "NUL escaped": b'{"request_text":"a\\u0000b"}',
    "a lone surrogate": b'{"request_text":"\\ud800"}',
    "NaN": b'{"request_text":"x","outcome":{"a":NaN}}',
    "infinity": b'{"request_text":"x","outcome":{"a":1e999}}',
    "a huge number": b'{"request_text":"x","outcome":{"a":1' + b"0" * 200_000 + b"}}",
    "a huge exponent": b'{"request_text":"x","outcome":{"a":1e-999999999}}',
    "deep arrays": b'{"request_text":"x","suggestions":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep objects": b'{"request_text":"x","outcome":' + b'{"a":' * 50_000 + b"1" + b"}" * 50_001,
    "an unknown member": b'{"request_text":"x","admin":true}',
    "a member of the server": b'{"request_text":"x","recorded_at":"2020-01-01T00:00:00Z"}',
    "a prototype": b'{"request_text":"x","__proto__":{"a":1}}',
    "a member twice": b'{"request_text":"x","status":"failed","status":"pending"}',
    "members without end": json.dumps({f"m{n}": 1 for n in range(50_000)}).encode(),
    "2,000 tasks": b"[" + b",".join([b'{"request_text":"x"}'] * 2000) + b"]",
    "a year too early": b'{"request_text":"x","created_at":"0001-01-01T00:00:00+14:00"}',
    "a year too late": b'{"request_text":"x","created_at":"9999-12-31T23:59:59-12:00"}',
    "an id that is none": b'{"request_text":"x","task_id":"\xc2\xa0"}',
    "names without end": json.dumps(
        {"request_text": "x", "services_touched": [str(n) for n in range(5000)]}
    ).encode(),
}  # fmt: skip
MAY_BE_RECORDED = {"a byte order mark", "a huge exponent", "a huge number", "infinity"}


@pytest.mark.parametrize("kind", list(BODIES))
async def test_hostile_bodies(running: Running, kind: str) -> None:
    async with aiohttp.ClientSession() as session:
        for content_type in ("application/json", "application/x-ndjson"):
            answer = await send(
                session, "POST", running, "/tasks",
                data=BODIES[kind], headers={"Content-Type": content_type},
            )  # fmt: skip
            hold_to_rules(answer, kind)
            assert answer[0] >= 400 or kind in MAY_BE_RECORDED, answer


REQUESTS = {
    "no HTTP": b"hello\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "another version": b"GET / HTTP/9.9\r\nHost: x\r\n\r\n",
    "a line without end": b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "a header without end": b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 40_000 + b"\r\n\r\n",
    "many headers": b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: 1\r\n" * 2000 + b"\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
    "no host": b"GET /healthz HTTP/1.1\r\n\r\n",
    "length and chunks": (
        b"POST /api/v1/audit/tasks HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    ),
    "two lengths": (
        b"POST /api/v1/audit/tasks HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n"
        b"Content-Length: 6\r\n\r\nhello"
    ),
    "a length below zero": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    "a blank before the colon": b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
    "a header folded": b"GET / HTTP/1.1\r\nHost: x\r\nX: a\r\n b\r\n\r\n",
    "NUL in a header": b"GET / HTTP/1.1\r\nHost: x\r\nX: a\x00b\r\n\r\n",
    "a bare newline": b"GET / HTTP/1.1\r\nHost: x\r\nX: a\nEvil: b\r\n\r\n",
    "a chunk of no size": (
        b"POST /api/v1/audit/tasks HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"
    ),
    "a method of its own": b"canary-method / HTTP/1.1\r\nHost: x\r\n\r\n",
    "another host's URL": b"GET http://canary.example.com/api HTTP/1.1\r\nHost: x\r\n\r\n",
    "CONNECT": b"CONNECT canary.example.com:443 HTTP/1.1\r\nHost: x\r\n\r\n",
}


@pytest.mark.parametrize("kind", list(REQUESTS))
def test_hostile_http(running: Running, kind: str) -> None:
    address = urlsplit(running.url)
    assert address.hostname is not None
    with socket.create_connection((address.hostname, address.port or 0), timeout=60) as connection:
        connection.sendall(REQUESTS[kind])
        answer = b""
        while not answer.endswith(b"}") and (chunk := connection.recv(65536)):
            answer += chunk

    status = int(answer.split(b" ", 2)[1])
    assert 400 <= status < 500
    for word in (b"canary", b"Python", b"aiohttp/", b"Traceback", PASSWORD.encode()):
        assert word not in answer
    assert b"application/problem+json" in answer


async def test_the_log_has_none_of_the_hostile_values(running: Running) -> None:
    """This test is the last of the file, because the other tests have written the log."""
    async with aiohttp.ClientSession() as session:
        assert (await send(session, "GET", running, "/query?limit=1"))[0] == 200
    log = running.log.read_bytes()

    for word in (PASSWORD, running.key, running.key[10:], "Traceback", "DROP TABLE", "\x1b[31m"):
        assert word.encode() not in log
    assert len(log) < 10_000
