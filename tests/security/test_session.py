"""The session of the web page: who can open one, and what a stolen or misused one can do."""

from __future__ import annotations

import asyncio
import re
import uuid
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from audit.access.identity import Scope
from audit.access.keys import create_key, revoke_key
from tests.api import API, TASKS, metric
from tests.conftest import Client, Start, task
from tests.waiting import until

if TYPE_CHECKING:
    from audit.postgres.pool import Pool

COOKIE = "task_audit_session"
PAGE = {"Sec-Fetch-Site": "same-origin"}


async def make(pool: Pool, name: str, *scopes: Scope, **other: Any) -> str:
    key, _ = await create_key(pool, name, frozenset(scopes), **other)
    return key


def with_session(key: str, site: str | None = "same-origin") -> dict[str, str]:
    """The headers of a request that a browser sends with the cookie of a session."""
    headers = {"Cookie": f"theme=dark; {COOKIE}={key}; other=1"}
    return headers if site is None else {**headers, "Sec-Fetch-Site": site}


async def opened(client: Client, key: str, **headers: str) -> tuple[int, dict[str, Any]]:
    response = await client.post("/session", json={"key": key}, headers={**PAGE, **headers})
    body = await response.read()
    return response.status, await response.json(content_type=None) if body else {}


# --- opening and closing --------------------------------------------------------------------------


async def test_a_key_that_reads_opens_a_session(start: Start, pool: Pool) -> None:
    key = await make(pool, "ada", Scope.READ)
    client = await start()
    response = await client.post("/session", json={"key": key}, headers=PAGE)

    assert response.status == 204
    cookie, *attributes = response.headers["Set-Cookie"].split("; ")
    assert cookie == f"{COOKIE}={key}"
    assert set(attributes) == {"HttpOnly", "Secure", "SameSite=Strict", "Path=/"}
    assert response.headers["Cache-Control"] == "no-store"
    caller = await (await client.get(f"{API}/whoami", headers=with_session(key))).json()
    assert (caller["name"], caller["via"], caller["scopes"]) == ("ada", "session", ["read"])


async def test_closing_removes_the_cookie(start: Start, pool: Pool) -> None:
    key = await make(pool, "ada", Scope.READ)
    response = await (await start()).delete("/session", headers=with_session(key))

    assert response.status == 204
    cookie, *attributes = response.headers["Set-Cookie"].split("; ")
    assert cookie == f"{COOKIE}="
    assert "Max-Age=0" in attributes
    assert "Path=/" in attributes


@pytest.mark.parametrize("scopes", [[Scope.RECORD], [Scope.ADMIN], [Scope.READ, Scope.RECORD]])
async def test_a_key_that_does_more_than_read_opens_no_session(
    start: Start, pool: Pool, scopes: list[Scope]
) -> None:
    key = await make(pool, "bot", *scopes)
    client = await start()
    response = await client.post("/session", json={"key": key}, headers=PAGE)
    problem = await response.json(content_type=None)

    assert response.status == 403
    assert "Set-Cookie" not in response.headers
    if Scope.READ in scopes:
        assert "audit keys create --name ada --scope read --expires 90d" in problem["detail"]
    else:
        assert "needs the scope read" in problem["detail"]


async def test_an_invalid_key_opens_no_session(start: Start, pool: Pool) -> None:
    await make(pool, "ada", Scope.READ)
    old = await make(pool, "old", Scope.READ, expires=timedelta(milliseconds=1))
    gone = await make(pool, "gone", Scope.READ)
    await revoke_key(pool, "gone")
    client = await start()

    assert (await opened(client, "taskaudit_wrong"))[1]["detail"] == "the key is unknown"
    assert (await opened(client, old))[1]["detail"] == "the key old has expired"
    status, problem = await opened(client, gone)
    assert (status, problem["detail"]) == (401, "the key gone is revoked")


async def test_a_service_that_requires_no_key_opens_no_session(start: Start) -> None:
    assert (await opened(await start(), "taskaudit_any"))[0] == 401


@pytest.mark.parametrize("method", ["POST", "DELETE"])
@pytest.mark.parametrize("site", ["cross-site", "same-site", "none", "SAME-ORIGIN", ""])
async def test_other_pages_cannot_open_or_close_a_session(
    start: Start, pool: Pool, method: str, site: str
) -> None:
    key = await make(pool, "ada", Scope.READ)
    response = await (await start()).request(
        method, "/session", json={"key": key}, headers={"Sec-Fetch-Site": site}
    )

    assert response.status == 403
    assert "Set-Cookie" not in response.headers


async def test_a_browser_without_https_learns_why_it_gets_no_session(
    start: Start, pool: Pool
) -> None:
    key = await make(pool, "ada", Scope.READ)
    response = await (await start()).post("/session", json={"key": key})
    problem = await response.json(content_type=None)

    assert response.status == 403
    assert "https" in problem["detail"]


@pytest.mark.parametrize(
    ("status", "body", "content_type"),
    [
        (400, "{", "application/json"),
        (422, "[]", "application/json"),
        (422, "{}", "application/json"),
        (422, '{"key": 7}', "application/json"),
        (422, '{"key": "a", "key": "b"}', "application/json"),
        (422, '{"key": "a", "name": "b"}', "application/json"),
        (422, '{"key": "a; Domain=example.com"}', "application/json"),
        (422, '{"key": "a\\r\\nSet-Cookie: b=c"}', "application/json"),
        (422, '{"key": "' + "a" * 4001 + '"}', "application/json"),
        (415, '{"key": "a"}', "text/plain"),
        (415, "key=a", "application/x-www-form-urlencoded"),
    ],
)
async def test_a_malformed_request_opens_no_session(
    start: Start, pool: Pool, status: int, body: str, content_type: str
) -> None:
    await make(pool, "ada", Scope.READ)
    response = await (await start()).post(
        "/session", data=body, headers={**PAGE, "Content-Type": content_type}
    )

    assert response.status == status
    assert "Set-Cookie" not in response.headers


async def test_a_session_counts_for_the_rate_limit_of_its_key(start: Start, pool: Pool) -> None:
    key = await make(pool, "ada", Scope.READ)
    client = await start(rate_per_second=0.02)

    response = await client.post("/session", json={"key": key}, headers=PAGE)
    assert response.status == 204
    assert "RateLimit" in response.headers
    limited = await client.get(f"{API}/query", headers=with_session(key))
    assert limited.status == 429
    assert int(limited.headers["Retry-After"]) > 0
    assert (await opened(client, key))[0] == 429


# --- what it allows -------------------------------------------------------------------------------


@pytest.mark.parametrize("site", ["same-origin", "none"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_session_reads(start: Start, pool: Pool, method: str, site: str) -> None:
    key = await make(pool, "ada", Scope.READ)
    client = await start()
    one = task()
    writer = await make(pool, "bot", Scope.RECORD)

    async def records() -> bool:
        headers = {"Authorization": f"Bearer {writer}"}
        return (await client.post(TASKS, json=one, headers=headers)).status in {200, 201}

    async with asyncio.timeout(30):
        while not await records():  # noqa: ASYNC110 - until the service has read the key
            await asyncio.sleep(0.05)
    for path in (
        "/query", "/failures", "/by-service/a", f"/tasks/{one['task_id']}",
        f"/tasks/{one['task_id']}/history", "/whoami",
    ):  # fmt: skip
        response = await client.request(method, API + path, headers=with_session(key, site))
        assert response.status == 200, path
        assert "Cookie" in response.headers["Vary"].split(", "), path


@pytest.mark.parametrize("site", ["cross-site", "same-site", None])
async def test_a_session_is_not_accepted_from_other_pages(
    start: Start, pool: Pool, site: str | None
) -> None:
    key = await make(pool, "ada", Scope.READ)
    client = await start(cors_origin="https://evil.example.com")
    for path in ("/query", "/whoami"):
        response = await client.get(
            API + path,
            headers={**with_session(key, site), "Origin": "https://evil.example.com"},
        )
        assert response.status == 401
        assert "Cookie" in response.headers["Vary"].split(", ")
        assert "Access-Control-Allow-Credentials" not in response.headers


async def test_a_session_cannot_record_change_or_see_metrics(start: Start, pool: Pool) -> None:
    # A browser could hold such a cookie only if someone had put it there by hand.
    key = await make(pool, "all", *Scope)
    client = await start()
    one = f"{TASKS}/{uuid.uuid4()}"
    for method, path in [("POST", TASKS), ("PATCH", one), ("GET", "/metrics")]:
        response = await client.request(method, path, json=task(), headers=with_session(key))
        problem = await response.json(content_type=None)
        assert response.status == 401, path
        assert "send an API key" in problem["detail"]
    with_key = {"Authorization": f"Bearer {key}"}
    listed = await (await client.get(f"{API}/query", headers=with_key)).json()
    assert listed["total"] == 0


async def test_a_session_sees_only_the_project_of_its_key(start: Start, pool: Pool) -> None:
    ours, theirs = uuid.UUID(int=1), uuid.UUID(int=2)
    key = await make(pool, "ada", Scope.READ, project_id=ours)
    client = await start()
    own = await client.get(f"{API}/query", headers=with_session(key))
    other = await client.get(f"{API}/query?project_id={theirs}", headers=with_session(key))

    assert (own.status, other.status) == (200, 403)


async def test_the_header_wins_over_the_session(start: Start, pool: Pool) -> None:
    session = await make(pool, "ada", Scope.READ)
    bot = await make(pool, "bot", Scope.READ)
    client = await start()
    url = f"{API}/whoami"
    both = {**with_session(session), "Authorization": f"Bearer {bot}"}
    wrong = {**with_session(session), "Authorization": "Bearer taskaudit_wrong"}

    caller = await (await client.get(url, headers=both)).json()
    assert (caller["name"], caller["via"]) == ("bot", "key")
    assert (await client.get(url, headers=wrong)).status == 401


@pytest.mark.parametrize(
    "cookie", ["", "=", f"{COOKIE}", f"{COOKIE}=", f'{COOKIE}="', f"{COOKIE}=\x80\xff", "a;;=;b"]
)
async def test_a_broken_cookie_is_no_session(start: Start, pool: Pool, cookie: str) -> None:
    await make(pool, "ada", Scope.READ)
    response = await (await start()).get(f"{API}/query", headers={**PAGE, "Cookie": cookie})

    assert response.status == 401


async def test_a_session_ends_when_its_key_is_revoked(start: Start, pool: Pool) -> None:
    key = await make(pool, "ada", Scope.READ)
    client = await start()
    reads = 'task_audit_statement_duration_seconds_count{statement="list_keys"}'
    assert (await client.get(f"{API}/query", headers=with_session(key))).status == 200

    await revoke_key(pool, "ada")
    before = metric(client, reads)
    await until(lambda: metric(client, reads) >= before + 2)

    response = await client.get(f"{API}/query", headers=with_session(key))
    assert response.status == 401
    assert (await response.json(content_type=None))["detail"] == "the key ada is revoked"


# --- what is logged -------------------------------------------------------------------------------


async def test_the_log_names_the_key_of_a_session_and_not_its_secret(
    start: Start, pool: Pool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    key = await make(pool, "ada", Scope.READ)
    more = await make(pool, "bot", Scope.READ, Scope.RECORD)
    client = await start(log_sample=1)
    await client.get(f"{API}/query", headers=with_session(key))
    await opened(client, key)
    await opened(client, more)
    await opened(client, "taskaudit_wrong")

    logged = [vars(record) for record in caplog.records if "key_name" in str(vars(record))]
    text = str(logged)
    assert {"ada", "bot"} <= set(re.findall(r"'key_name': '(\w+)'", text))
    for secret in (key, more, "taskaudit_wrong"):
        assert secret not in text
