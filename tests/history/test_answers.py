"""The cache of responses: when it is used, what concurrent requests share, and its memory."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest

from audit.errors import TimedOut
from audit.history.answers import Answer, Answers, Question
from audit.history.changes import Changes
from audit.history.freshness import Version
from audit.history.query import AuditQuery
from audit.history.task import TaskPage
from audit.settings import Settings
from audit.web.app import create_app
from audit.web.state import SERVICE
from tests.conftest import Client, ago, task
from tests.lists import Computed, get, record
from tests.waiting import quiet, until

NOW = datetime(2026, 11, 23, 8, tzinfo=UTC)


@pytest.fixture
def computed(client: Client, monkeypatch: pytest.MonkeyPatch) -> Computed:
    return Computed(client.app[SERVICE].reading, monkeypatch)


@pytest.mark.parametrize(
    "path", ["/query?limit=5", "/by-service/payments", "/failures?until=2030-01-01T00:00:00Z"]
)
async def test_a_repeated_request_is_answered_without_a_query_while_nothing_changes(
    client: Client, computed: Computed, path: str
) -> None:
    await record(client, task(status="failed"), task(status="failed"))
    await quiet(client)
    first = await get(client, path)

    again = [await get(client, path) for _ in range(5)]
    await asyncio.sleep(1.5)  # the background work does not change the version
    again += [await get(client, path)]

    assert 1 == computed.pages
    assert {await first.text()} == {await one.text() for one in again}
    assert {first.headers["ETag"]} == {one.headers["ETag"] for one in again}
    await record(client, task(status="failed"))
    assert 3 == (await (await get(client, path)).json())["total"]
    assert computed.pages <= 2


async def test_a_query_with_days_is_computed_again_each_second(
    client: Client, computed: Computed
) -> None:
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
    # At most one page each second, with an ETag of its own.
    assert computed.pages <= seconds + 2
    assert computed.pages == len(etags)


async def test_new_task_leaves_the_window_although_the_answer_was_valid_for_longer(
    client: Client,
) -> None:
    async def total() -> int:
        return int((await (await get(client, "/query?last=1h")).json())["total"])

    await record(client, task(created_at=ago(minutes=1)))
    await quiet(client)
    begun = ago(hours=1)
    while ago(hours=1) < begun + timedelta(seconds=2):
        # In the next second, the answer is found to be valid for nearly an hour.
        assert await total() == 1
        await asyncio.sleep(0.1)
    await record(client, task(created_at=ago(hours=1) + timedelta(seconds=3)))

    assert await total() == 2
    await asyncio.sleep(4)
    assert await total() == 1


# --- single flight --------------------------------------------------------------------------------


async def test_identical_requests_at_the_same_time_share_one_query(
    client: Client, computed: Computed
) -> None:
    await record(client, task())
    await quiet(client)
    computed.gate.clear()

    asking = [asyncio.create_task(get(client, "/query?limit=3")) for _ in range(50)]
    other = asyncio.create_task(get(client, "/query?limit=4"))
    await until(lambda: computed.pages == 2)
    await asyncio.sleep(0.1)
    for one in asking[:10]:
        one.cancel()
    await asyncio.sleep(0.1)
    computed.gate.set()

    assert {200} == {(await one).status for one in asking[10:]}
    assert 200 == (await other).status
    assert 2 == computed.pages


async def test_a_request_after_a_write_does_not_share_the_query_before_it(
    client: Client, computed: Computed
) -> None:
    await record(client, task())
    computed.gate.clear()
    early = asyncio.create_task(get(client, "/query"))
    await until(lambda: computed.pages == 1)
    await record(client, task())
    later = asyncio.create_task(get(client, "/query"))
    await until(lambda: computed.pages == 2)
    computed.gate.set()

    # The page of the earlier request was read after the write, so it is the same.
    assert [2, 2] == [(await (await one).json())["total"] for one in (early, later)]


async def test_a_failure_reaches_all_who_wait_and_is_not_cached(
    client: Client, computed: Computed
) -> None:
    await quiet(client)
    computed.gate.clear()
    computed.failure = TimedOut("the query ran into its time limit")
    asking = [asyncio.create_task(get(client, "/query")) for _ in range(5)]
    await until(lambda: computed.pages == 1)
    await asyncio.sleep(0.5)
    computed.gate.set()
    answers = [await one for one in asking]
    computed.failure = None
    # A request that comes late on a busy machine is the first of others.
    shared = computed.pages

    assert [504] * 5 == [answer.status for answer in answers]
    assert 5 == len({(await answer.json(content_type=None))["instance"] for answer in answers})
    assert all("ETag" not in answer.headers for answer in answers)
    assert shared < 5
    assert 200 == (await get(client, "/query")).status
    assert shared + 1 == computed.pages


# --- memory ---------------------------------------------------------------------------------------


class Pages:
    """Stands for the database: pages of a given size, and tasks that may change."""

    def __init__(self, page_bytes: int) -> None:
        self.text = "x" * page_bytes
        self.have_changed = False
        self.failure: Exception | None = None
        self.computed: list[int] = []

    async def read_versions(self, changes: Changes) -> AsyncIterator[Version]:
        while True:
            if self.have_changed:
                changes.forget()
                self.have_changed = False
            yield Version(changes.number, NOW)

    async def list_tasks(self, query: AuditQuery, *, version: Version) -> TaskPage:
        self.computed.append(query.limit)
        if self.failure:
            raise self.failure
        return TaskPage(f'["{self.text}"]', 1, query.limit, 0, None, 1)


def key_of(limit: int) -> str:
    return f"/query?limit={limit}"


def question_of(limit: int, pages: Pages) -> Question:
    query = AuditQuery(limit=limit)
    return Question(query, partial(pages.list_tasks, query))


async def ask(answers: Answers, pages: Pages, limit: int) -> Answer:
    key = key_of(limit)
    question = answers.known_question(key) or question_of(limit, pages)
    return await answers.under(await answers.current_version(), key, question)


async def test_memory_is_limited_and_the_least_recently_used_answer_is_dropped_first() -> None:
    pages = Pages(10_000)
    answers = Answers(pages, 45_000)  # type: ignore[arg-type]
    for limit in (1, 2, 3, 1, 4):
        await ask(answers, pages, limit)
        assert answers.cached_bytes <= 45_000

    pages.computed.clear()
    for limit in (1, 3, 4, 2):
        await ask(answers, pages, limit)

    assert [2] == pages.computed
    for limit in range(1, 101):
        await ask(answers, pages, limit)
        assert 0 < answers.cached_bytes <= 45_000


async def test_an_answer_over_the_limit_is_not_cached_and_drops_no_other() -> None:
    pages = Pages(1000)
    answers = Answers(pages, 20_000)  # type: ignore[arg-type]
    await ask(answers, pages, 1)
    pages.text = "x" * 30_000
    sizes = {len((await ask(answers, pages, 2)).body) for _ in range(2)}
    await ask(answers, pages, 1)

    assert [1, 2, 2] == pages.computed
    assert min(sizes) > 30_000
    assert 0 < answers.cached_bytes < 20_000


async def test_queries_without_an_answer_count_as_memory() -> None:
    pages = Pages(1000)
    answers = Answers(pages, 20_000)  # type: ignore[arg-type]
    pages.failure = TimedOut("the query ran into its time limit")
    for limit in range(1, 101):
        with pytest.raises(TimedOut):
            await ask(answers, pages, limit)
        assert 0 < answers.cached_bytes <= 20_000

    assert answers.known_question(key_of(1)) is None
    known = answers.known_question(key_of(100))
    assert known is not None
    assert known.query == AuditQuery(limit=100)


async def test_memory_does_not_grow_when_answers_are_replaced() -> None:
    pages = Pages(5000)
    answers = Answers(pages, 1_000_000)  # type: ignore[arg-type]
    cached = []
    for _ in range(5):
        pages.have_changed = True
        for limit in range(1, 9):
            answer = await ask(answers, pages, limit)
            before = answers.cached_bytes
            packed = await answers.gzip(key_of(limit), answer)
            assert answers.cached_bytes == before + len(packed)
        cached.append(answers.cached_bytes)

    assert [cached[0]] * 5 == cached
    assert cached[0] > 8 * 5000
    assert 5 * 8 == len(pages.computed)


async def test_memory_of_a_dropped_answer_is_free_at_once() -> None:
    pages = Pages(1000)
    answers = Answers(pages, 1_000_000)  # type: ignore[arg-type]
    gc.disable()
    try:
        dropped = weakref.ref(await ask(answers, pages, 1))
        assert dropped() is not None
        pages.have_changed = True
        await ask(answers, pages, 1)
        assert dropped() is None
    finally:
        gc.enable()


async def test_without_a_cache_each_request_is_answered_anew(
    dsn: str,
    aiohttp_client: Callable[..., Awaitable[Client]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = await aiohttp_client(create_app(Settings(pool_size=2, answers_bytes=0), dsn))
    reading = client.app[SERVICE].reading
    computed = Computed(reading, monkeypatch)
    await record(client, *(task() for _ in range(20)))

    plain, held = [await get(client, "/query", held) for held in (None, "*")]
    packed = await get(client, "/query", **{"Accept-Encoding": "gzip"})

    assert [200, 304, 200] == [plain.status, held.status, packed.status]
    assert plain.headers["ETag"] == packed.headers["ETag"]
    assert await plain.json() == await packed.json()
    assert "gzip" == packed.headers["Content-Encoding"]
    assert 3 == computed.pages
