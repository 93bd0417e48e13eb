"""How waiting requests become groups, and what a failure or a cancelled request does to a group."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import asyncpg
import pytest

from audit.errors import Unavailable
from audit.history.grouping import Groups
from audit.postgres.admission import GroupLane
from tests.simulated_time import in_simulated_time

MOST = 4
SECONDS = 0.01


class Served:
    """Serves groups in some time each, and keeps what they were."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.groups: list[list[int]] = []
        self._failure = failure
        self.requests = Groups(GroupLane(MOST, queue_seconds=2), self._serve)

    async def _serve(self, requests: Sequence[int]) -> list[str | None]:
        self.groups.append(list(requests))
        await asyncio.sleep(SECONDS)
        if self._failure:
            raise self._failure
        return [str(request) if request >= 0 else None for request in requests]

    def start(self, *requests: int) -> list[asyncio.Task[str | None]]:
        return [
            asyncio.create_task(self.requests.result(request, retry_key=request))
            for request in requests
        ]


@in_simulated_time
async def test_requests_that_arrive_during_a_group_form_the_next_one() -> None:
    served = Served()

    results = await asyncio.gather(*served.start(*range(8)))

    assert [str(number) for number in range(8)] == results
    assert [[0], [1, 2, 3, 4], [5, 6, 7]] == served.groups


@in_simulated_time
async def test_a_request_that_arrives_alone_begins_at_once() -> None:
    served = Served()
    loop = asyncio.get_running_loop()
    began = loop.time()

    for number in range(3):
        assert str(number) == await served.requests.result(number, retry_key=number)

    assert [[0], [1], [2]] == served.groups
    assert loop.time() - began == pytest.approx(3 * SECONDS)


@in_simulated_time
async def test_a_request_without_a_result_is_to_be_served_alone() -> None:
    served = Served()

    results = await asyncio.gather(*served.start(0, 1, -2, 3))

    assert ["0", "1", None, "3"] == results


@in_simulated_time
async def test_a_cancelled_request_does_not_disturb_its_group() -> None:
    served = Served()
    waiting, running, *others = served.start(0, 1, 2, 3, 4, 5, 6)
    del waiting
    await asyncio.sleep(SECONDS * 1.5)
    queued = others.pop()

    running.cancel()
    queued.cancel()

    assert ["2", "3", "4", "5"] == await asyncio.gather(*others)
    assert [[0], [1, 2, 3, 4], [5]] == served.groups


@in_simulated_time
async def test_if_all_requests_of_a_group_are_cancelled_it_still_runs_to_its_end() -> None:
    served = Served()
    (left,) = served.start(0)
    await asyncio.sleep(0)
    await asyncio.sleep(SECONDS / 2)

    left.cancel()
    (result,) = await asyncio.gather(*served.start(1))

    assert "1" == result
    assert [[0], [1]] == served.groups


@in_simulated_time
async def test_if_the_database_does_not_answer_every_request_of_the_group_fails() -> None:
    served = Served(Unavailable("the database does not answer"))

    results = await asyncio.gather(*served.start(*range(4)), return_exceptions=True)

    assert [Unavailable] * 4 == [type(result) for result in results]


@pytest.mark.parametrize(
    "failure",
    [asyncpg.CheckViolationError("x"), ValueError("x"), asyncpg.LockNotAvailableError("x")],
    ids=lambda failure: type(failure).__name__,
)
def test_if_one_request_may_have_failed_the_group_each_is_served_alone(failure: Exception) -> None:
    @in_simulated_time
    async def check() -> None:
        served = Served(failure)

        assert [None] * 4 == await asyncio.gather(*served.start(*range(4)))

    check()


@in_simulated_time
async def test_if_another_transaction_is_in_the_way_each_request_is_served_alone() -> None:
    failure = Unavailable("the database does not answer")
    failure.__cause__ = asyncpg.LockNotAvailableError("x")

    assert [None] * 4 == await asyncio.gather(*Served(failure).start(*range(4)))
