"""Answers that are sent again: never older than the request, made once, within their memory."""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import os
import random
import signal
import time
import uuid
import weakref
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

import aiohttp
import psycopg
import pytest
from aiohttp import ClientResponse
from psycopg.types.json import Jsonb

from audit.errors import Invalid, TimedOut, Unavailable
from audit.history.answers import Answers, Tokens
from audit.history.asking import Reading, Token
from audit.history.query import AuditQuery, parse_query
from audit.history.service import AuditService
from audit.history.task import TaskPage
from audit.postgres import embedded, migrate
from audit.postgres.pool import open_pool
from audit.settings import Settings
from audit.web.app import create_app
from audit.web.state import ANSWERS, SERVICE
from tests.conftest import FAST, Client, ago, execute, task
from tests.processes import serving
from tests.waiting import quiet, until

API = "/api/v1/audit"
NOW = datetime(2026, 11, 23, 8, tzinfo=UTC)
PLAIN = {"Accept-Encoding": "identity"}


async def record(client: Client, *tasks: dict[str, Any]) -> None:
    answer = await client.post(f"{API}/tasks", json=list(tasks))
    assert answer.status in (200, 201), await answer.text()


async def get(client: Client, path: str, held: str | None = None, **headers: str) -> ClientResponse:
    if held is not None:
        headers["If-None-Match"] = held
    answer = await client.get(API + path, headers={**PLAIN, **headers})
    await answer.read()
    return answer


class Counted:
    """Counts the questions that a service is asked; they wait for `gate`, and fail by `failure`."""

    def __init__(self, reading: Reading) -> None:
        self.asked = 0
        self.ended = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.failure: Exception | None = None
        self._list_tasks = reading.list_tasks

    async def list_tasks(
        self, query: Any, *, clock: datetime | None = None, server: str | None = None
    ) -> TaskPage:
        self.asked += 1
        try:
            await self.gate.wait()
            if self.failure:
                raise self.failure
            return await self._list_tasks(query, clock=clock, server=server)
        finally:
            self.ended += 1


@pytest.fixture
def counted(client: Client, monkeypatch: pytest.MonkeyPatch) -> Counted:
    reading = client.app[SERVICE].reading
    counted = Counted(reading)
    monkeypatch.setattr(reading, "list_tasks", counted.list_tasks)
    return counted


# --- never older than the request -----------------------------------------------------------------


class Histories:
    """What writers were told is done, and readers that must find it, in any worker."""

    def __init__(self, url: str, dsn: str) -> None:
        self.url = url
        self.dsn = dsn
        self.began = time.monotonic()
        self.recorded: Counter[str] = Counter()
        self.finished: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()

    def going_on(self) -> bool:
        """Whether six seconds have not passed, or a busy machine has not answered enough yet."""
        seconds = time.monotonic() - self.began
        is_enough = min(self.statuses[200], self.statuses[304]) > 100
        return seconds < 6 or (seconds < 60 and not is_enough)

    @staticmethod
    async def pause() -> None:
        """Write in bursts, between which questions are repeated on data that are quiet."""
        await asyncio.sleep(random.choice([0, 0.005, 0.02]))
        phase = time.monotonic() % 0.6
        if phase > 0.3:
            await asyncio.sleep(0.6 - phase)

    async def post(self, name: str) -> None:
        async with aiohttp.ClientSession(self.url) as session, Reader(self, name) as reader:
            while self.going_on():
                sent = task(services_touched=[name], status="failed")
                async with session.post(f"{API}/tasks", json=sent) as answer:
                    assert answer.status == 201
                self.recorded[name] += 1
                self.finished[name] += 1
                await reader.ask()
                await self.pause()

    async def patch(self, name: str) -> None:
        async with aiohttp.ClientSession(self.url) as session, Reader(self, name) as reader:
            while self.going_on():
                sent = task(services_touched=[name], status="pending")
                async with session.post(f"{API}/tasks", json=sent) as answer:
                    assert answer.status == 201
                self.recorded[name] += 1
                await reader.ask()
                await self.pause()
                change = {"status": "failed"}
                async with session.patch(f"{API}/tasks/{sent['task_id']}", json=change) as answer:
                    assert answer.status == 200
                self.finished[name] += 1
                await reader.ask()
                await self.pause()

    async def commit(self, name: str) -> None:
        statement = (
            "INSERT INTO tasks (task_id, request_text, services_touched, status, outcome)"
            " VALUES (%s, 'by SQL', %s, 'failed', %s)"
        )
        connecting = psycopg.AsyncConnection.connect(self.dsn)
        async with await connecting as connection, Reader(self, name) as reader:
            while self.going_on():
                await connection.execute(statement, (uuid.uuid4(), [name], Jsonb({})))
                await self.pause()
                await connection.commit()
                self.recorded[name] += 1
                self.finished[name] += 1
                await reader.ask()
                await self.pause()

    async def read(self, name: str) -> None:
        async with Reader(self, name) as reader:
            while self.going_on():
                await reader.ask()


class Reader:
    """Asks for one history over a connection of its own, and remembers what an ETag stood for."""

    def __init__(self, histories: Histories, name: str) -> None:
        self.statuses = histories.statuses
        self.name = name
        self.questions = {
            f"{API}/by-service/{name}?limit=1": histories.recorded,
            f"{API}/query?service={name}&days=2&limit=1": histories.recorded,
            f"{API}/failures?service={name}&limit=1": histories.finished,
            f"{API}/query?service={name}&status=failed&limit=1": histories.finished,
        }
        self.held: dict[str, tuple[str, int]] = {}
        self.session = aiohttp.ClientSession(histories.url)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.session.close()

    async def ask(self) -> None:
        url, done = random.choice(list(self.questions.items()))
        etag, total = self.held.get(url, ("", 0))
        least = done[self.name]
        headers = {"If-None-Match": etag} if etag else {}
        async with self.session.get(url, headers=headers) as answer:
            if answer.status == 200:
                total = (await answer.json())["total"]
                self.held[url] = answer.headers["ETag"], total
        assert answer.status in (200, 304)
        assert least <= total, f"{url} missed what was done before ({answer.status})"
        self.statuses[answer.status] += 1


async def test_no_read_misses_what_was_confirmed_before_it_in_any_worker(dsn: str) -> None:
    with serving("--workers", "3", "--dsn", dsn) as (_, url, _):
        histories = Histories(url, dsn)
        async with asyncio.TaskGroup() as group:
            for number in range(2):
                group.create_task(histories.post(f"posted-{number}"))
                group.create_task(histories.patch(f"patched-{number}"))
                group.create_task(histories.commit(f"committed-{number}"))
            # Each over a connection of its own: the kernel spreads them over the workers.
            for kind in ("posted", "patched", "committed"):
                for number in range(6):
                    group.create_task(histories.read(f"{kind}-{number % 2}"))

    assert min(histories.recorded.values()) > 1
    assert histories.statuses[200] > 100
    assert histories.statuses[304] > 100


def tokens_by_hand() -> tuple[Tokens, list[asyncio.Future[Token]]]:
    """Tokens, and each of their statements as it is sent: the test tells what it gives."""
    sent: list[asyncio.Future[Token]] = []

    async def read() -> AsyncGenerator[Token, None]:
        while True:
            sent.append(asyncio.get_running_loop().create_future())
            yield await sent[-1]

    return Tokens(read), sent


async def test_a_token_on_its_way_is_not_for_who_comes_later() -> None:
    tokens, sent = tokens_by_hand()
    first = asyncio.create_task(tokens.next())
    await until(lambda: len(sent) == 1)
    later = [asyncio.create_task(tokens.next()) for _ in range(3)]
    await asyncio.sleep(0.01)

    assert 1 == len(sent)
    sent[0].set_result(Token("one", NOW))
    assert "one" == (await first).text
    await until(lambda: len(sent) == 2)
    assert not any(task.done() for task in later)
    later[0].cancel()
    sent[1].set_result(Token("two", NOW))
    assert ["two", "two"] == [(await task).text for task in later[1:]]


async def test_a_token_that_fails_fails_all_who_wait_for_it_and_no_other() -> None:
    tokens, sent = tokens_by_hand()
    early = [asyncio.create_task(tokens.next()) for _ in range(3)]
    await until(lambda: len(sent) == 1)
    later = asyncio.create_task(tokens.next())
    await asyncio.sleep(0)
    early[0].cancel()
    sent[0].set_exception(Unavailable("the database does not answer"))

    results = await asyncio.gather(*early, return_exceptions=True)
    assert [asyncio.CancelledError, Unavailable, Unavailable] == [type(one) for one in results]
    await until(lambda: len(sent) == 2)
    sent[1].set_result(Token("two", NOW))
    assert "two" == (await later).text
    after = asyncio.create_task(tokens.next())
    await until(lambda: len(sent) == 3)
    sent[2].set_result(Token("three", NOW))
    assert "three" == (await after).text


async def test_who_ask_again_when_they_are_answered_share_the_next_token() -> None:
    reads = 0

    async def read() -> AsyncGenerator[Token, None]:
        nonlocal reads
        while True:
            reads += 1
            await asyncio.sleep(0)
            yield Token(str(reads), NOW)

    async def ask(tokens: Tokens, client: int) -> None:
        for _ in range(10):
            await tokens.next()
            for _ in range(client % 3):  # on its way to us, an answer and the next request
                await asyncio.sleep(0)

    tokens = Tokens(read)
    await asyncio.gather(*(ask(tokens, client) for client in range(8)))

    assert 10 <= reads <= 12


async def test_tokens_leave_the_connection_to_questions_now_and_then(dsn: str) -> None:
    async with open_pool(Settings(pool_size=1), dsn) as pool:
        service = AuditService(pool)
        tokens = Tokens(service.reading.read_tokens)
        asked = [asyncio.create_task(_keep_asking(tokens)) for _ in range(4)]
        pages = [await service.audit_query() for _ in range(20)]
        for one in asked:
            one.cancel()

    assert [0] * 20 == [page.total for page in pages]


async def _keep_asking(tokens: Tokens) -> None:
    while True:
        await tokens.next()


async def _token(dsn: str) -> Token:
    async with (
        open_pool(Settings(pool_size=1), dsn) as pool,
        aclosing(AuditService(pool).reading.read_tokens()) as tokens,
    ):
        return await anext(tokens)


async def test_a_token_changes_when_a_transaction_ends_and_not_when_one_begins(dsn: str) -> None:
    writing = "SELECT pg_current_xact_id()"
    with psycopg.connect(dsn) as one, psycopg.connect(dsn) as other:
        before = await _token(dsn)
        one.execute(writing)
        other.execute(writing)
        begun = await _token(dsn)
        other.commit()
        half = await _token(dsn)
        one.rollback()
        done = await _token(dsn)

    assert before.text == begun.text
    assert 3 == len({before.text, half.text, done.text})
    assert done.text == (await _token(dsn)).text
    assert timedelta(0) <= datetime.now(UTC) - done.clock < timedelta(seconds=10)


async def test_a_restart_and_a_recovery_change_the_token(tmp_path: Path) -> None:
    started = "SELECT pg_postmaster_start_time()"
    with embedded.running(tmp_path / "data", options=FAST) as dsn:
        migrate.apply(dsn)
        first = await _token(dsn)
    with embedded.running(tmp_path / "data", options=FAST) as dsn:
        told = execute(dsn, started)
        before = await _token(dsn)
        with psycopg.connect(dsn, autocommit=True) as connection:
            # So that the server recovers, and is not started anew.
            os.kill(connection.info.backend_pid, signal.SIGKILL)
        after = await _after_recovery(dsn)
        again = execute(dsn, started)

    # Whatever the number of the transaction that was the last: the snapshot is the third from the
    # end, before the database and its table.
    assert first.text.split()[:2] != before.text.split()[:2]
    assert before.text.split()[:-3] != after.text.split()[:-3]
    assert told == again


async def _after_recovery(dsn: str) -> Token:
    async with asyncio.timeout(60):
        while True:
            try:
                return await _token(dsn)
            except Unavailable:
                await asyncio.sleep(0.05)


# --- a question asked again -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/query?limit=5", "/by-service/payments", "/failures?until=2030-01-01T00:00:00Z"]
)
async def test_a_repeated_question_on_quiet_data_is_not_asked_of_the_database(
    client: Client, counted: Counted, path: str
) -> None:
    await record(client, task(status="failed"), task(status="failed"))
    await quiet(client)
    first = await get(client, path)

    again = [await get(client, path) for _ in range(5)]
    await asyncio.sleep(1.5)  # nothing that the service does by itself counts as a change
    again += [await get(client, path)]

    assert 1 == counted.asked
    assert {await first.text()} == {await one.text() for one in again}
    assert {first.headers["ETag"]} == {one.headers["ETag"] for one in again}
    await record(client, task(status="failed"))
    assert 3 == (await (await get(client, path)).json())["total"]
    assert 2 == counted.asked


async def test_the_window_of_days_moves_with_the_second(client: Client, counted: Counted) -> None:
    """In each of the next hundred seconds, one task leaves the window."""
    begun = ago(days=1)
    await record(client, *(task(created_at=begun + timedelta(seconds=n)) for n in range(1, 101)))
    await quiet(client)

    def left() -> int:
        return 100 - (ago(days=1) - begun) // timedelta(seconds=1)

    totals, etags = [], set()
    first_asked = time.monotonic()
    while time.monotonic() - first_asked < 3:
        most = left()
        answer = await get(client, "/query?days=1")
        totals.append((await answer.json())["total"])
        etags.add(answer.headers["ETag"])
        assert left() - 1 <= totals[-1] <= most + 1
        await asyncio.sleep(0.02)
    seconds = time.monotonic() - first_asked

    assert totals[-1] < totals[0]
    # At most one question each second, and one ETag.
    assert counted.asked <= seconds + 2
    assert counted.asked == len(etags)


async def test_what_is_wrong_is_told_before_anything_is_asked(
    client: Client, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never() -> None:
        raise AssertionError

    monkeypatch.setattr(client.app[ANSWERS]._tokens, "next", never)

    for path in ("/query?limit=0", "/query?cursor=x", "/failures?status=failed"):
        assert 422 == (await get(client, path, "*")).status
    assert 400 == (await get(client, "/by-service/%FF", "*")).status
    assert 0 == counted.asked


async def test_a_question_that_is_known_is_not_judged_again(service: AuditService) -> None:
    answers = Answers(service.reading, 1 << 20)
    judged = []

    def parse() -> AuditQuery:
        judged.append(1)
        return parse_query(AuditQuery, {})

    found = [await answers.find("/query", parse) for _ in range(3)]

    assert 1 == len(judged)
    assert 1 == len({id(answer) for answer in found})


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


async def test_who_holds_the_answer_is_told_so_by_any_worker(
    dsn: str, client: Client, counted: Counted, aiohttp_client: Callable[..., Awaitable[Client]]
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
        assert "Accept-Encoding, Authorization" == answer.headers["Vary"]
        assert answer.headers["X-Request-ID"]
        assert "Content-Type" not in answer.headers
    assert 0 == counted.asked
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


# --- made once ------------------------------------------------------------------------------------


async def test_identical_questions_in_flight_are_asked_once(
    client: Client, counted: Counted
) -> None:
    await record(client, task())
    await quiet(client)
    counted.gate.clear()

    asking = [asyncio.create_task(get(client, "/query?limit=3")) for _ in range(50)]
    other = asyncio.create_task(get(client, "/query?limit=4"))
    await until(lambda: counted.asked == 2)
    await asyncio.sleep(0.1)
    for one in asking[:10]:
        one.cancel()
    await asyncio.sleep(0.1)
    counted.gate.set()

    assert {200} == {(await one).status for one in asking[10:]}
    assert 200 == (await other).status
    assert 2 == counted.asked


async def test_a_question_that_a_write_has_overtaken_is_not_shared(
    client: Client, counted: Counted
) -> None:
    await record(client, task())
    counted.gate.clear()
    early = asyncio.create_task(get(client, "/query"))
    await until(lambda: counted.asked == 1)
    await record(client, task())
    later = asyncio.create_task(get(client, "/query"))
    await until(lambda: counted.asked == 2)
    counted.gate.set()

    assert 2 == (await (await later).json())["total"]
    assert (await early).headers["ETag"] != (await later).headers["ETag"]


async def test_a_failure_is_told_to_all_and_forgotten(client: Client, counted: Counted) -> None:
    await quiet(client)
    counted.gate.clear()
    counted.failure = TimedOut("the query ran into its time limit")
    asking = [asyncio.create_task(get(client, "/query")) for _ in range(5)]
    await until(lambda: counted.asked == 1)
    await asyncio.sleep(0.5)
    counted.gate.set()
    answers = [await one for one in asking]
    counted.failure = None
    # A request that comes late on a busy machine is the first of others.
    shared = counted.asked

    assert [504] * 5 == [answer.status for answer in answers]
    assert 5 == len({(await answer.json(content_type=None))["instance"] for answer in answers})
    assert all("ETag" not in answer.headers for answer in answers)
    assert shared < 5
    assert 200 == (await get(client, "/query")).status
    assert shared + 1 == counted.asked


# --- memory ---------------------------------------------------------------------------------------


class Pages:
    """Stands for the service: one state of the history, and pages of a given size."""

    def __init__(self, page_bytes: int) -> None:
        self.text = "x" * page_bytes
        self.token = Token("one", NOW)
        self.asked: list[Any] = []

    async def read_tokens(self) -> AsyncIterator[Token]:
        while True:
            yield self.token

    async def list_tasks(
        self, query: AuditQuery, *, clock: datetime | None = None, server: str | None = None
    ) -> TaskPage:
        self.asked.append(query.limit)
        return TaskPage(f'["{self.text}"]', 1, query.limit, 0, None, 1)


async def ask(answers: Answers, limit: int) -> bytes:
    query = AuditQuery(limit=limit)
    return await (await answers.find(f"/query?limit={limit}", lambda: query)).body()


async def test_memory_is_bounded_and_the_longest_unasked_goes_first() -> None:
    pages = Pages(10_000)
    answers = Answers(pages, 45_000)  # type: ignore[arg-type]
    for limit in (1, 2, 3, 1, 4):
        await ask(answers, limit)
        assert answers.kept_bytes <= 45_000

    pages.asked.clear()
    for limit in (1, 3, 4, 2):
        await ask(answers, limit)

    assert [2] == pages.asked
    for limit in range(1, 101):
        await ask(answers, limit)
        assert 0 < answers.kept_bytes <= 45_000


async def test_an_answer_over_the_bound_is_not_kept_and_drops_no_other() -> None:
    pages = Pages(1000)
    answers = Answers(pages, 20_000)  # type: ignore[arg-type]
    await ask(answers, 1)
    pages.text = "x" * 30_000
    sizes = {len(await ask(answers, 2)) for _ in range(2)}
    await ask(answers, 1)

    assert [1, 2, 2] == pages.asked
    assert min(sizes) > 30_000
    assert 0 < answers.kept_bytes < 20_000


async def test_what_is_counted_is_what_is_kept() -> None:
    pages = Pages(5000)
    answers = Answers(pages, 1_000_000)  # type: ignore[arg-type]
    for turn in range(5):
        pages.token = Token(f"token {turn}", NOW)
        for limit in range(1, 9):
            await ask(answers, limit)
            found = await answers.find(f"/query?limit={limit}", AuditQuery)
            await found.gzip_body()
            assert answers.kept_bytes == sum(one.size() for one in answers._kept.values())

    assert 8 == len(answers._kept)


async def test_memory_of_what_is_dropped_is_free_at_once() -> None:
    pages = Pages(1000)
    answers = Answers(pages, 1_000_000)  # type: ignore[arg-type]
    gc.disable()
    try:
        await ask(answers, 1)
        dropped = weakref.ref(answers._kept["/query?limit=1"])
        pages.token = Token("two", NOW)
        await ask(answers, 1)
        assert dropped() is None
    finally:
        gc.enable()


async def test_without_memory_each_question_is_asked_anew(
    dsn: str,
    aiohttp_client: Callable[..., Awaitable[Client]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = await aiohttp_client(create_app(Settings(pool_size=2, answers_bytes=0), dsn))
    reading = client.app[SERVICE].reading
    counted = Counted(reading)
    monkeypatch.setattr(reading, "list_tasks", counted.list_tasks)
    monkeypatch.setattr(reading, "read_tokens", None)
    await record(client, *(task() for _ in range(20)))

    plain, held = [await get(client, "/query", held) for held in (None, "*")]
    packed = await get(client, "/query", **{"Accept-Encoding": "gzip"})

    assert [200, 200, 200] == [plain.status, held.status, packed.status]
    assert "ETag" not in plain.headers
    assert await plain.json() == await packed.json()
    assert "gzip" == packed.headers["Content-Encoding"]
    assert 3 == counted.asked


# --- compression ----------------------------------------------------------------------------------


@pytest.fixture
async def sixty(client: Client) -> Client:
    await record(client, *(task() for _ in range(60)))
    await quiet(client)
    return client


@pytest.mark.parametrize(
    ("accepted", "is_packed"),
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
async def test_gzip_is_for_those_who_accept_it(
    sixty: Client, accepted: str, is_packed: bool
) -> None:
    url = f"{API}/query"
    plain = await get(sixty, "/query")
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        headers = {"Accept-Encoding": accepted}
        async with session.get(sixty.make_url(url), headers=headers) as answer:
            body = await answer.read()

    assert ("gzip" if is_packed else None) == answer.headers.get("Content-Encoding")
    assert (gzip.decompress(body) if is_packed else body) == await plain.read()
    assert len(body) == int(answer.headers["Content-Length"])
    assert "Accept-Encoding, Authorization" == answer.headers["Vary"]
    assert plain.headers["ETag"] == answer.headers["ETag"]
    if is_packed:
        assert len(body) < len(await plain.read()) / 4


async def test_a_short_answer_goes_out_as_it_is(sixty: Client) -> None:
    answer = await get(sixty, "/query?limit=1", **{"Accept-Encoding": "gzip"})

    assert "Content-Encoding" not in answer.headers
    assert "application/json" == answer.headers["Content-Type"]


async def test_a_long_answer_is_packed_beside_other_work_and_once(
    client: Client, counted: Counted, monkeypatch: pytest.MonkeyPatch
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
    assert 1 == len(threads)
    assert 1 == counted.asked


async def test_head_is_the_head_of_get(sixty: Client) -> None:
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

        told = ("ETag", "Content-Type", "Content-Encoding", "Vary", "Cache-Control")
        assert [200, 200, 304] == [whole.status, head.status, same.status]
        assert {n: whole.headers.get(n) for n in told} == {n: head.headers.get(n) for n in told}


async def test_a_cursor_of_others_is_refused_also_of_who_holds_an_answer(client: Client) -> None:
    await record(client, task(), task())
    page = await (await get(client, "/query?limit=1")).json()
    path = f"/query?limit=1&cursor={page['next_cursor']}"

    assert 304 == (await get(client, path, "*")).status
    assert 422 == (await get(client, path + "&status=failed", "*")).status
    with pytest.raises(Invalid):
        await client.app[ANSWERS].find("/", lambda: AuditQuery(cursor="x"))
