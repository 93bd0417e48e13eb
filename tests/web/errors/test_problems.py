"""Every refusal is a problem that reveals nothing about the inside of the service."""

from __future__ import annotations

import logging
import re
import uuid
from typing import Any, Final

import pytest

from audit.history.service import AuditService
from audit.postgres import statements
from tests.api import API, JSON, TASKS
from tests.conftest import Client
from tests.web.errors.conftest import ONE, problem, refusal, send

pytestmark = pytest.mark.asyncio(loop_scope="module")


REFUSALS: dict[str, tuple[int, str, str, dict[str, Any]]] = {
    "broken JSON": (400, "POST", TASKS, {"data": b"{", "headers": JSON}),
    "broken URL": (400, "GET", f"{API}/query?service=%zz", {}),
    "no task": (404, "GET", ONE, {}),
    "no task to change": (404, "PATCH", ONE, {"json": {}}),
    "no route": (404, "GET", "/nowhere", {}),
    "no method": (405, "DELETE", ONE, {}),
    "a fixed field": (409, "PATCH", ONE, {"json": {"request_text": "x"}}),
    "no content type": (415, "POST", TASKS, {"data": b"{}"}),
    "a parameter": (422, "GET", f"{API}/query?limit=0", {}),
    "a member": (422, "POST", TASKS, {"json": {}}),
}


@pytest.mark.parametrize("case", REFUSALS)
async def test_every_refusal_is_a_problem(client: Client, case: str) -> None:
    status, method, path, request = REFUSALS[case]

    body = await problem(await send(client, method, path, **request))

    assert status == body["status"]
    assert (status == 422) == bool(body.get("errors"))


async def test_problems_of_a_kind_share_type_and_title(client: Client) -> None:
    one = await problem(await send(client, "GET", f"{API}/query?limit=0"))
    two = await problem(await send(client, "GET", f"{API}/failures?days=x"))

    assert (one["type"], one["title"]) == (two["type"], two["title"])
    assert one["detail"] != two["detail"]
    assert one["instance"] != two["instance"]


ROUTES: Final = ["/healthz", f"{API}/query", f"{API}/query?limit=0", ONE, "/nowhere"]


@pytest.mark.parametrize(
    "request_id", ["a", "A.b_c~d-9", str(uuid.UUID(int=2, version=4)), "x" * 128]
)
async def test_a_valid_request_id_is_kept(client: Client, request_id: str) -> None:
    headers = {"X-Request-ID": request_id}

    answers = [await send(client, "GET", path, headers=headers) for path in ROUTES]

    assert [request_id] * len(ROUTES) == [answer.headers["X-Request-ID"] for answer in answers]


@pytest.mark.parametrize(
    "request_id", ["", "x" * 129, "a b", "a,b", '"a"', "<a>", "ä", "a;b", "٣", "a/b", "{}"]
)
async def test_an_invalid_request_id_is_replaced(client: Client, request_id: str) -> None:
    headers = {"X-Request-ID": request_id}

    answers = [await send(client, "GET", path, headers=headers) for path in ROUTES]

    given = [answer.headers["X-Request-ID"] for answer in answers]
    assert all(re.fullmatch(r"[0-9a-f]{32}", one) for one in given)
    assert len({*given}) == len(ROUTES)


@pytest.mark.parametrize(
    "path",
    ["/api", API, f"{API}/", f"{API}/failures/", f"{API}/Query", f"{API}/by-service",
     f"{API}/by-service/", f"{API}/by-service/a/b", f"{TASKS}/", f"{ONE}/", f"{API}//query",
     "//", "/%00", "/%zz", "/%FF", "/healthz/x", "/api/v2/audit/query", "/etc/passwd",
     "/docs/../../etc/passwd", f"{API}/query;a=1"],
)  # fmt: skip
async def test_an_unknown_route_is_not_found(client: Client, path: str) -> None:
    assert (404, []) == await refusal(client, "GET", path)


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        (f"{API}/failures", "GET, HEAD, OPTIONS"),
        (f"{API}/by-service/a", "GET, HEAD, OPTIONS"),
        (f"{API}/query", "GET, HEAD, OPTIONS"),
        (TASKS, "OPTIONS, POST"),
        (ONE, "GET, HEAD, OPTIONS, PATCH"),
        ("/healthz", "GET, HEAD, OPTIONS"),
        ("/readyz", "GET, HEAD, OPTIONS"),
    ],
)
async def test_an_unsupported_method_gets_405_with_allow(
    client: Client, path: str, allowed: str
) -> None:
    methods = {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"} - {*allowed.split(", ")}

    answers = [await send(client, method, path) for method in sorted(methods)]

    assert [(405, allowed)] * len(methods) == [
        ((await problem(answer))["status"], answer.headers["Allow"]) for answer in answers
    ]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (f"{API}/failures", 200),
        (f"{API}/by-service/a%2Fb", 200),
        (f"{API}/query?limit=1", 200),
        ("/healthz", 200),
        ("/readyz", 200),
        (f"{API}/query?limit=0", 422),
        (ONE, 404),
        ("/nowhere", 404),
        (TASKS, 405),
    ],
)
async def test_head_responds_like_get_without_a_body(
    client: Client, path: str, status: int
) -> None:
    head, get = [await send(client, method, path) for method in ("HEAD", "GET")]

    assert (status, status) == (head.status, get.status)
    assert await head.read() == b""
    assert get.headers["Content-Type"] == head.headers["Content-Type"]


async def test_an_unexpected_error_is_logged_and_not_revealed(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("secret of postgresql://audit:password@host")

    monkeypatch.setattr(AuditService, "get_task", fail)
    body = await problem(await send(client, "GET", ONE))

    assert body["status"] == 500
    assert "secret" in caplog.text
    assert body["instance"] in caplog.text


async def test_messages_of_postgresql_are_not_revealed(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    monkeypatch.setattr(statements, "GET_TASK", "SELEC secret FROM tasks WHERE $1")

    assert (await problem(await send(client, "GET", ONE)))["status"] == 500


async def test_health_responses_are_json(client: Client) -> None:
    ready = {"status": "ready", "role": "primary"}
    for path, told in {"/healthz": {"status": "ok"}, "/readyz": ready}.items():
        answer = await send(client, "GET", path)

        assert (200, told) == (answer.status, await answer.json())
        assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["X-Request-ID"])
