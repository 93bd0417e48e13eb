"""How often a key may ask, over all workers."""

from __future__ import annotations

import multiprocessing
import time
import uuid

import pytest
from pytest_aiohttp.plugin import AiohttpClient

from audit.access.identity import Scope
from audit.access.keys import create_key
from audit.access.rates import Rates
from audit.errors import TooManyRequests
from audit.postgres.pool import open_pool
from audit.settings import Settings
from audit.web.app import create_app


def passed(rates: Rates, number: int, asked: int) -> int:
    count = 0
    for _ in range(asked):
        try:
            rates.take(number)
        except TooManyRequests:
            continue
        count += 1
    return count


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still: its last item is the time."""
    times = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: times[-1])
    return times


def test_the_requests_of_a_second_may_come_at_once(now: list[float]) -> None:
    rates = Rates(10)

    assert passed(rates, 7, 25) == 10
    assert passed(rates, 8, 25) == 10
    now.append(1000.5)
    assert passed(rates, 7, 25) == 5
    now.append(1010)
    assert passed(rates, 7, 25) == 10


def test_a_refusal_has_the_limit_and_retry_after(now: list[float]) -> None:
    rates = Rates(2)
    left = [rates.take(7)["RateLimit"] for _ in range(2)]
    with pytest.raises(TooManyRequests) as refused:
        rates.take(7)

    assert left == ['"key";r=1;t=1', '"key";r=0;t=1']
    assert "2 requests per second" in refused.value.detail
    assert refused.value.retry_after_seconds == 1
    assert refused.value.headers == {
        "RateLimit-Policy": '"key";q=2;w=1',
        "RateLimit": '"key";r=0;t=1',
    }
    assert now == [1000]


def test_a_rate_can_be_below_one_per_second(now: list[float]) -> None:
    rates = Rates(0.1)

    assert passed(rates, 7, 5) == 1
    now.append(1009)
    assert passed(rates, 7, 5) == 0
    now.append(1010)
    assert rates.take(7)["RateLimit-Policy"] == '"key";q=1;w=10'


def test_zero_means_unlimited() -> None:
    assert passed(Rates(0), 7, 5000) == 5000
    assert Rates(0).take(7) == {}
    assert Rates(1).take(None) == {}


def test_workers_share_the_limits() -> None:
    rates = Rates(50)
    context = multiprocessing.get_context("fork")
    counts = context.SimpleQueue()
    workers = [context.Process(target=lambda: counts.put(passed(rates, 7, 50))) for _ in range(3)]
    for worker in workers:
        worker.start()
    total = sum(counts.get() for _ in workers)
    for worker in workers:
        worker.join()

    # What refills meanwhile is let through too.
    assert 50 <= total < 100


async def test_only_the_key_over_its_limit_is_refused(
    dsn: str, aiohttp_client: AiohttpClient
) -> None:
    async with open_pool(Settings(pool_size=1), dsn) as pool:
        keys = [
            (await create_key(pool, str(uuid.uuid4()), frozenset([Scope.READ])))[0]
            for _ in range(2)
        ]
    client = await aiohttp_client(create_app(Settings(pool_size=2, rate_per_second=0.01), dsn))
    answers = [
        await client.get("/api/v1/audit/query", headers={"Authorization": f"Bearer {key}"})
        for key in (keys[0], keys[0], keys[1])
    ]

    assert [200, 429, 200] == [answer.status for answer in answers]
    assert answers[0].headers["RateLimit-Policy"] == '"key";q=1;w=100'
    assert answers[0].headers["RateLimit"] == '"key";r=0;t=100'
    assert 90 <= int(answers[1].headers["Retry-After"]) <= 100
    assert (await answers[1].json())["type"] == "urn:task-audit:problem:too-many-requests"
