"""ETags, 304 and gzip of lists: any worker answers alike."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import pytest

from audit.history.freshness import Freshness
from audit.settings import Settings
from audit.web.app import create_app
from audit.web.state import SERVICE
from tests.api import API
from tests.conftest import Client, execute, task
from tests.lists import Computed, get, record
from tests.waiting import quiet


@pytest.fixture
def computed(client: Client, monkeypatch: pytest.MonkeyPatch) -> Computed:
    return Computed(client.app[SERVICE].reading, monkeypatch)


# --- ETag and 304 ---------------------------------------------------------------------------------


async def test_an_etag_is_the_same_in_every_worker_and_changes_with_every_write(
    dsn: str, client: Client, aiohttp_client: Callable[..., Awaitable[Client]]
) -> None:
    other = await aiohttp_client(create_app(Settings(pool_size=2), dsn))
    sent = task(status="pending")
    await record(client, sent)
    await quiet(client)

    async def etag(path: str = "/query") -> str:
        await quiet(client)
        found = {(await get(one, path)).headers["ETag"] for one in (client, other)}
        assert 1 == len(found)
        return found.pop()

    seen = [await etag()]
    assert seen[0].startswith('W/"')
    assert seen[0] != await etag("/query?limit=7")
    assert seen[0] == await etag()
    await record(other, task())
    seen.append(await etag())
    await client.patch(f"{API}/tasks/{sent['task_id']}", json={"status": "executing"})
    seen.append(await etag())
    execute(dsn, "UPDATE tasks SET status = 'completed' WHERE status = 'executing'")
    seen.append(await etag())

    assert 4 == len(set(seen))


async def test_a_write_that_does_not_show_in_a_response_keeps_its_etag(client: Client) -> None:
    await record(client, task(services_touched=["payments"]))
    etag = (await get(client, "/by-service/payments")).headers["ETag"]
    await record(client, task(services_touched=["checkout"]))

    assert 304 == (await get(client, "/by-service/payments", etag)).status
    # Another response may have the same body.
    assert (
        etag
        == (await get(client, "/by-service/payments?until=2030-01-01T00:00:00Z")).headers["ETag"]
    )


async def test_any_worker_sends_304_to_a_client_that_holds_the_response(
    dsn: str, client: Client, computed: Computed, aiohttp_client: Callable[..., Awaitable[Client]]
) -> None:
    other = await aiohttp_client(create_app(Settings(pool_size=2), dsn))
    await record(client, task())
    await quiet(client)
    etag = (await get(other, "/query")).headers["ETag"]

    for held in (etag, etag.removeprefix("W/"), "*", f'"x", {etag} ,W/"y"', f'W/"x",{etag[2:]}'):
        answer = await get(client, "/query", held)
        assert 304 == answer.status, held
        assert b"" == await answer.read()
        assert etag == answer.headers["ETag"]
        assert "private, no-cache" == answer.headers["Cache-Control"]
        assert "Accept-Encoding, Authorization, Cookie" == answer.headers["Vary"]
        assert answer.headers["X-Request-ID"]
        assert "Content-Type" not in answer.headers
    assert 1 == computed.pages
    for held in ('"x"', etag.strip('"W/'), 'W/"*"', f"{etag[:-2]}", ""):
        assert 200 == (await get(client, "/query", held)).status, held
    await record(client, task())
    assert 200 == (await get(client, "/query", etag)).status


async def test_several_headers_are_one_list(client: Client) -> None:
    await quiet(client)
    etag = (await get(client, "/query")).headers["ETag"]

    answer = await client.get(
        f"{API}/query", headers=[("If-None-Match", '"x"'), ("If-None-Match", etag)]
    )

    assert 304 == answer.status


@pytest.mark.parametrize("path", ["/tasks/7d9f1c9e-0c3f-4d0e-9a63-6b6f0b7c2d11", "/nothing"])
async def test_other_routes_have_no_etag(client: Client, path: str) -> None:
    answer = await get(client, path, "*")

    assert 404 == answer.status
    assert "ETag" not in answer.headers


async def test_errors_are_found_before_an_etag_is_compared_or_a_statement_runs(
    client: Client, computed: Computed, monkeypatch: pytest.MonkeyPatch
) -> None:
    await record(client, task(), task())
    page = await (await get(client, "/query?limit=1")).json()
    path = f"/query?limit=1&cursor={page['next_cursor']}"

    assert 304 == (await get(client, path, "*")).status
    monkeypatch.setattr(Freshness, "current", None)
    assert 422 == (await get(client, path + "&status=failed", "*")).status
    for wrong in ("/query?limit=0", "/query?cursor=x", "/failures?status=failed"):
        assert 422 == (await get(client, wrong, "*")).status
    assert 400 == (await get(client, "/by-service/%FF", "*")).status
    assert 2 == computed.pages


# --- compression ----------------------------------------------------------------------------------


@pytest.fixture
async def sixty(client: Client) -> Client:
    await record(client, *(task() for _ in range(60)))
    await quiet(client)
    return client


@pytest.mark.parametrize(
    ("accepted", "is_compressed"),
    [
        ("gzip", True),
        ("x-gzip", True),
        ("GZip;q=0.5, br", True),
        ("deflate, gzip;q=1.0, *;q=0.5", True),
        ("*", True),
        ("br, * ; q=0.1", True),
        ("gzip;q=0", False),
        ("gzip; q=0.000, *", False),
        ("*;q=0", False),
        ("identity", False),
        ("deflate, br", False),
        ("", False),
        ("gzipped", False),
    ],
)
async def test_gzip_is_sent_if_the_client_accepts_it(
    sixty: Client, accepted: str, is_compressed: bool
) -> None:
    url = f"{API}/query"
    plain = await get(sixty, "/query")
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        headers = {"Accept-Encoding": accepted}
        async with session.get(sixty.make_url(url), headers=headers) as answer:
            body = await answer.read()

    assert ("gzip" if is_compressed else None) == answer.headers.get("Content-Encoding")
    assert (gzip.decompress(body) if is_compressed else body) == await plain.read()
    assert len(body) == int(answer.headers["Content-Length"])
    assert "Accept-Encoding, Authorization, Cookie" == answer.headers["Vary"]
    assert plain.headers["ETag"] == answer.headers["ETag"]
    if is_compressed:
        assert len(body) < len(await plain.read()) / 4


async def test_a_short_response_is_not_compressed(sixty: Client) -> None:
    answer = await get(sixty, "/query?limit=1", **{"Accept-Encoding": "gzip"})

    assert "Content-Encoding" not in answer.headers
    assert "application/json" == answer.headers["Content-Type"]


async def test_a_long_response_is_compressed_once_in_a_thread(
    client: Client, computed: Computed, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = random.Random(1).randbytes(20_000).hex()
    await record(client, *(task(request_text=text) for _ in range(10)))
    await quiet(client)
    threads = []
    to_thread = asyncio.to_thread

    async def counting(*arguments: Any) -> Any:
        threads.append(1)
        return await to_thread(*arguments)

    monkeypatch.setattr(asyncio, "to_thread", counting)
    answers = await asyncio.gather(
        *(get(client, "/query", **{"Accept-Encoding": "gzip"}) for _ in range(8))
    )

    assert {"gzip"} == {one.headers["Content-Encoding"] for one in answers}
    assert [text] * 10 == [
        one["request_text"] for one in json.loads(await answers[0].read())["tasks"]
    ]
    # One to digest the body, and one to compress it.
    assert 2 == len(threads)
    assert 1 == computed.pages


async def test_head_has_the_headers_of_get(sixty: Client) -> None:
    for accepted in ("gzip", "identity"):
        headers = {"Accept-Encoding": accepted}
        async with AsyncExitStack() as stack:
            session = await stack.enter_async_context(aiohttp.ClientSession(auto_decompress=False))
            url = sixty.make_url(f"{API}/query")
            whole = await stack.enter_async_context(session.get(url, headers=headers))
            head = await stack.enter_async_context(session.head(url, headers=headers))
            held = {**headers, "If-None-Match": whole.headers["ETag"]}
            same = await stack.enter_async_context(session.head(url, headers=held))
            assert len(await whole.read()) == int(head.headers["Content-Length"])
            assert b"" == await head.read()

        names = ("ETag", "Content-Type", "Content-Encoding", "Vary", "Cache-Control")
        assert [200, 200, 304] == [whole.status, head.status, same.status]
        assert {n: whole.headers.get(n) for n in names} == {n: head.headers.get(n) for n in names}
