"""CORS, OPTIONS, and the redirects to the page of the document."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from pydantic import ValidationError

from audit.access.identity import Scope
from audit.access.keys import create_key
from audit.postgres.pool import open_pool
from audit.settings import Settings
from audit.web.app import create_app
from tests.conftest import SERVING, Client, as_role, task

API = "/api/v1/audit"
TASK = f"{API}/tasks/7d9f1c9e-0c3f-4d0e-9a63-6b6f0b7c2d11"
ORIGIN = "https://ops.example.com"
ANOTHER = "http://localhost:3000"
PREFIX = "Access-Control-"

MakeClient = Callable[..., Awaitable[Client]]


@pytest.fixture
async def open_client(dsn: str, aiohttp_client: MakeClient) -> Client:
    """A client of a service that allows two origins."""
    settings = Settings(pool_size=2, cors_origin=f"{ORIGIN}, {ANOTHER}")
    return await aiohttp_client(create_app(settings, as_role(dsn, SERVING)))


def cors_headers(answer: Any) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name.startswith(PREFIX)}


def preflight(origin: str, method: str = "PATCH") -> dict[str, str]:
    return {
        "Origin": origin,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": "authorization,content-type,if-match",
    }


async def test_by_default_no_origin_is_allowed(client: Client) -> None:
    for headers in ({"Origin": ORIGIN}, preflight(ORIGIN)):
        for method in ("GET", "OPTIONS"):
            answer = await client.request(method, f"{API}/query", headers=headers)
            assert {} == cors_headers(answer)
            assert "Origin" not in answer.headers.get("Vary", "")


@pytest.mark.parametrize("origin", [ORIGIN, ANOTHER])
async def test_a_listed_origin_can_read_all_responses(open_client: Client, origin: str) -> None:
    for path, status in [
        (f"{API}/query", 200),
        (f"{API}/query?limit=0", 422),
        (TASK, 404),
        ("/nothing", 404),
        ("/healthz", 200),
    ]:
        answer = await open_client.get(path, headers={"Origin": origin})

        assert (path, status) == (path, answer.status)
        assert origin == answer.headers["Access-Control-Allow-Origin"]
        shown = answer.headers["Access-Control-Expose-Headers"].split(", ")
        assert {"ETag", "Link", "X-Total-Count", "X-Request-ID", "Retry-After"} <= {*shown}
        assert "Origin" in answer.headers["Vary"].split(", ")
        assert "Access-Control-Allow-Credentials" not in answer.headers


async def test_a_page_can_read_a_401_and_a_preflight_needs_no_key(
    dsn: str, aiohttp_client: MakeClient
) -> None:
    settings = Settings(pool_size=2, cors_origin=ORIGIN)
    async with open_pool(settings, dsn) as pool:
        await create_key(pool, "one", frozenset([Scope.READ]))
    client = await aiohttp_client(create_app(settings, dsn))

    refused = await client.get(f"{API}/query", headers={"Origin": ORIGIN})
    asked = await client.options(f"{API}/query", headers=preflight(ORIGIN, "GET"))

    assert (401, 204) == (refused.status, asked.status)
    assert ORIGIN == refused.headers["Access-Control-Allow-Origin"]
    assert "WWW-Authenticate" in refused.headers["Access-Control-Expose-Headers"]
    assert ORIGIN == asked.headers["Access-Control-Allow-Origin"]


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "https://ops.example.com.evil.example",
        "https://evil-ops.example.com",
        "http://ops.example.com",
        "https://ops.example.com:8443",
        "https://OPS.example.com",
        "null",
        "*",
        "",
        f"{ORIGIN}, {ANOTHER}",
        f"{ORIGIN},{ANOTHER}",
    ],
)
async def test_another_origin_can_read_nothing(open_client: Client, origin: str) -> None:
    for method, headers in (("GET", {"Origin": origin}), ("OPTIONS", preflight(origin))):
        answer = await open_client.request(method, f"{API}/query", headers=headers)

        assert {} == cors_headers(answer)
        assert "Origin" in answer.headers["Vary"].split(", ")


async def test_preflight_names_methods_and_headers(open_client: Client) -> None:
    answer = await open_client.options(TASK, headers=preflight(ORIGIN))

    assert answer.status == 204
    assert b"" == await answer.read()
    assert ORIGIN == answer.headers["Access-Control-Allow-Origin"]
    assert "GET, HEAD, OPTIONS, PATCH" == answer.headers["Access-Control-Allow-Methods"]
    allowed = answer.headers["Access-Control-Allow-Headers"].lower().split(", ")
    assert {"authorization", "content-type", "if-match", "if-none-match"} <= {*allowed}
    assert "600" == answer.headers["Access-Control-Max-Age"]


async def test_a_304_varies_by_origin_too(open_client: Client) -> None:
    await open_client.get(f"{API}/query", headers={"Origin": ORIGIN})
    held = {"Origin": ANOTHER, "If-None-Match": "*"}

    again = await open_client.get(f"{API}/query", headers=held)
    other = await open_client.get(f"{API}/query")

    assert again.status == 304
    assert ANOTHER == again.headers["Access-Control-Allow-Origin"]
    assert "Accept-Encoding, Authorization, Cookie, Origin" == again.headers["Vary"]
    assert {} == cors_headers(other)


@pytest.mark.parametrize(
    "listed",
    [
        "*",
        "null",
        "https://ops.example.com/",
        "https://ops.example.com:443",
        "https://Ops.example.com",
        "ops.example.com",
        "https://user@ops.example.com",
        f"{ORIGIN},*",
    ],
)
def test_the_setting_accepts_only_exact_origins(listed: str) -> None:
    with pytest.raises(ValidationError, match="must look like https"):
        Settings(cors_origin=listed)


# --- OPTIONS --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        (f"{API}/failures", "GET, HEAD, OPTIONS"),
        (f"{API}/by-service/a%2Fb", "GET, HEAD, OPTIONS"),
        (f"{API}/query?status=failed", "GET, HEAD, OPTIONS"),
        (f"{API}/tasks", "OPTIONS, POST"),
        (TASK, "GET, HEAD, OPTIONS, PATCH"),
        ("/healthz", "GET, HEAD, OPTIONS"),
        ("/readyz", "GET, HEAD, OPTIONS"),
        ("/metrics", "GET, HEAD, OPTIONS"),
        ("/openapi.json", "GET, HEAD, OPTIONS"),
        ("/docs", "GET, HEAD, OPTIONS"),
        ("/", "GET, HEAD, OPTIONS"),
        ("/tasks", "GET, HEAD, OPTIONS"),
    ],
)
async def test_options_names_the_methods_of_every_route(
    client: Client, path: str, allowed: str
) -> None:
    answer = await client.options(path)
    refused = await client.delete(path)

    assert (204, 405) == (answer.status, refused.status)
    assert (allowed, allowed) == (answer.headers["Allow"], refused.headers["Allow"])
    assert answer.headers["X-Request-ID"]
    assert ("PATCH" in allowed) == ("Accept-Patch" in answer.headers)


async def test_options_of_an_unknown_route_is_404(client: Client) -> None:
    assert 404 == (await client.options("/nothing")).status


async def test_options_of_a_task_lists_the_content_types_of_a_change(client: Client) -> None:
    one = task(status="executing")
    await client.post(f"{API}/tasks", json=one)
    url = f"{API}/tasks/{one['task_id']}"

    types = (await client.options(url)).headers["Accept-Patch"].split(", ")

    assert {"application/json", "application/merge-patch+json"} == {*types}
    for content_type in types:
        answer = await client.patch(url, data=b"{}", headers={"Content-Type": content_type})
        assert answer.status == 200


# --- the page -------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/docs/"])
async def test_a_browser_is_redirected_to_the_page(client: Client, path: str) -> None:
    led = await client.get(path, allow_redirects=False)
    page = await client.get(path)

    assert led.status == 307
    assert page.status == 200
    assert "/docs" == page.url.path
    assert page.content_type == "text/html"
