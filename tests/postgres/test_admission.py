"""The queue for the database: order, fairness between keys, refusals and what they promise."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import Counter

import pytest

from audit.errors import Unavailable
from audit.postgres.admission import CALLER, Admission, Caller, Lane
from tests.simulated_time import in_simulated_time


async def hold(lane: Lane, seconds: float, caller: int | None = None) -> None:
    CALLER.set(Caller(caller, None))
    async with lane.slot():
        await asyncio.sleep(seconds)


async def measured(lane: Lane, seconds: float) -> None:
    """Let a lane know how long its work takes."""
    for _ in range(4):
        await hold(lane, seconds)


@in_simulated_time
async def test_requests_of_one_caller_are_served_in_their_order() -> None:
    lane = Lane(1, 2)
    served: list[int] = []

    async def one(number: int) -> None:
        async with lane.slot():
            await asyncio.sleep(0)
            served.append(number)

    await asyncio.gather(*(one(number) for number in range(20)))

    assert served == list(range(20))


@in_simulated_time
async def test_no_more_run_at_once_than_there_are_slots() -> None:
    lane = Lane(3, 2)
    running = most = 0

    async def one() -> None:
        nonlocal running, most
        async with lane.slot():
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.001)
            running -= 1

    await asyncio.gather(*(one() for _ in range(30)))

    assert most == 3


@in_simulated_time
async def test_a_thousand_requests_of_one_key_delay_another_key_by_one_turn() -> None:
    lane = Lane(1, 2)
    served: list[int] = []

    async def one(caller: int) -> None:
        CALLER.set(Caller(caller, None))
        async with lane.slot():
            await asyncio.sleep(0)
            served.append(caller)

    crowd = [asyncio.create_task(one(1)) for _ in range(1000)]
    await asyncio.sleep(0)
    await asyncio.gather(one(2), one(3))

    assert {2, 3} <= set(served[:6])
    await asyncio.gather(*crowd)


@in_simulated_time
async def test_a_request_that_had_a_slot_before_waits_for_one_turn() -> None:
    lane = Lane(1, 2)
    served: list[str] = []

    async def one(name: str, *, again: bool = False) -> None:
        async with lane.slot(again=again):
            await asyncio.sleep(0.01)
            served.append(name)

    crowd = [asyncio.create_task(one("new")) for _ in range(5)]
    await asyncio.sleep(0)
    await one("again", again=True)

    assert served == ["new", "new", "again"]
    await asyncio.gather(*crowd)


@in_simulated_time
async def test_no_request_is_refused_while_the_wait_is_a_little_below_the_limit() -> None:
    """A steady load of irregular work, and a queue that takes 0.9 of the limit."""
    lane = Lane(11, 2)
    durations = random.Random(9)
    until = time.monotonic() + 30
    longest = 0.0

    async def client() -> None:
        nonlocal longest
        while time.monotonic() < until:
            began = time.monotonic()
            async with lane.slot():
                longest = max(longest, time.monotonic() - began)
                await asyncio.sleep(durations.expovariate(50))

    # 11 slots do 550 pieces of work a second, so the last of 1,000 waits for 1.8 seconds.
    await asyncio.gather(*(client() for _ in range(1000)))

    assert 1.7 < longest < 2.1


@in_simulated_time
async def test_a_wait_over_the_limit_is_refused_at_once_and_another_key_is_not() -> None:
    lane = Lane(1, 0.2)
    await measured(lane, 0.05)
    crowd = [asyncio.create_task(hold(lane, 0.05, caller=1)) for _ in range(6)]
    await asyncio.sleep(0)

    began = time.monotonic()
    with pytest.raises(Unavailable, match="queue_seconds") as refused:
        await hold(lane, 0, caller=1)
    assert time.monotonic() - began < 0.05
    assert refused.value.retry_after_seconds == 1
    await hold(lane, 0, caller=2)
    await asyncio.gather(*crowd)


@in_simulated_time
async def test_retry_after_is_the_time_until_the_wait_is_short_enough() -> None:
    lane = Lane(1, 2)
    await measured(lane, 1)
    crowd = [asyncio.create_task(hold(lane, 5, caller=1))]
    crowd += [asyncio.create_task(hold_again(lane)) for _ in range(6)]
    await asyncio.sleep(0)

    with pytest.raises(Unavailable) as refused:
        await hold(lane, 0)

    # The work of the six that wait takes six seconds, of which it may wait two.
    assert refused.value.retry_after_seconds == 4
    for task in crowd:
        task.cancel()
    await asyncio.gather(*crowd, return_exceptions=True)


async def hold_again(lane: Lane) -> None:
    async with lane.slot(again=True):
        pass


@pytest.mark.parametrize(("queue_seconds", "longest"), [(0.1, 0.15), (2, 3), (30, 31)])
@in_simulated_time
async def test_a_request_that_waits_longer_than_expected_is_refused(
    queue_seconds: float, longest: float
) -> None:
    lane = Lane(1, queue_seconds)
    await measured(lane, 0.001)
    stuck = asyncio.create_task(hold(lane, 100))
    await asyncio.sleep(0)

    began = time.monotonic()
    with pytest.raises(Unavailable):
        await hold(lane, 0)
    assert time.monotonic() - began == pytest.approx(longest)
    # By now the long work is seen to hold the only slot.
    began = time.monotonic()
    with pytest.raises(Unavailable):
        await hold(lane, 0)
    assert time.monotonic() - began < 0.05
    stuck.cancel()
    await asyncio.gather(stuck, return_exceptions=True)


@pytest.mark.parametrize("has_slot", [False, True])
@in_simulated_time
async def test_a_request_that_is_cancelled_leaves_no_trace(has_slot: bool) -> None:
    lane = Lane(1, 2)
    first = asyncio.create_task(hold(lane, 0.02))
    await asyncio.sleep(0)
    second = asyncio.create_task(hold(lane, 60))
    await asyncio.sleep(0)
    assert lane.holds_back(second)
    third = asyncio.create_task(hold(lane, 0))
    if has_slot:
        await first  # the slot goes to the second, which has not run yet
    second.cancel()

    await asyncio.gather(third, first)
    assert second.cancelled() or (await asyncio.gather(second, return_exceptions=True))
    assert not lane._running
    assert not lane._waiting
    assert not lane._waiting_tasks
    await asyncio.wait_for(hold(lane, 0), 1)


@in_simulated_time
async def test_clients_that_wait_as_asked_are_served() -> None:
    """Three times as many clients as the queue holds, each of which waits for Retry-After."""
    lane = Lane(4, 1)
    work = 0.02  # so 200 a second, and as many in the queue
    await measured(lane, work)
    outcomes: Counter[str] = Counter()
    until = time.monotonic() + 4
    slowest = 0.0

    async def client(number: int) -> None:
        nonlocal slowest
        asked = refusals = 0
        while time.monotonic() < until:
            if not refusals:
                asked += 1
                CALLER.set(Caller(None, (number, asked)))
            began = time.monotonic()
            try:
                async with lane.slot():
                    slowest = max(slowest, time.monotonic() - began)
                    await asyncio.sleep(work)
            except Unavailable as refused:
                refusals += 1
                outcomes["refused" if refusals == 1 else "refused again"] += 1
                await asyncio.sleep((refused.retry_after_seconds or 0) * random.uniform(1, 1.1))
            else:
                outcomes["served"] += 1
                refusals = 0

    await asyncio.gather(*(client(number) for number in range(600)))

    assert outcomes["refused"] > 200
    assert outcomes["refused again"] <= 0.02 * outcomes["refused"]
    assert outcomes["served"] > 0.7 * 4 * 4 / work
    assert slowest < 1.5 + 0.2


@in_simulated_time
async def test_a_client_that_waits_is_served_among_those_that_do_not() -> None:
    lane = Lane(4, 1)
    await measured(lane, 0.02)
    until = time.monotonic() + 60
    numbers = itertools.count()

    async def impatient() -> None:
        while time.monotonic() < until:
            CALLER.set(Caller(None, next(numbers)))
            try:
                await hold_as_it_is(lane)
            except Unavailable:
                await asyncio.sleep(0.1)

    crowd = [asyncio.create_task(impatient()) for _ in range(400)]
    await asyncio.sleep(0.5)
    CALLER.set(Caller(None, "polite"))
    with pytest.raises(Unavailable) as refused:
        await hold_until_refused(lane)
    with pytest.raises(Unavailable) as early:
        await hold_as_it_is(lane)
    assert refused.value.retry_after_seconds
    assert early.value.retry_after_seconds
    assert early.value.retry_after_seconds <= refused.value.retry_after_seconds
    await asyncio.sleep(early.value.retry_after_seconds)
    await hold_as_it_is(lane)

    until = 0
    await asyncio.gather(*crowd)


async def hold_until_refused(lane: Lane) -> None:
    while True:
        await hold_as_it_is(lane)


async def hold_as_it_is(lane: Lane) -> None:
    async with lane.slot():
        await asyncio.sleep(0.02)


@in_simulated_time
async def test_clients_that_never_come_back_leave_no_slot_idle() -> None:
    lane = Lane(1, 0.2)
    await measured(lane, 0.01)
    crowd = [asyncio.create_task(hold(lane, 0.01, 1)) for _ in range(200)]
    await asyncio.gather(*crowd, return_exceptions=True)
    assert any(task.exception() for task in crowd)

    await asyncio.wait_for(hold(lane, 0, 1), 0.1)
    served = [asyncio.create_task(hold(lane, 0.01, 1)) for _ in range(8)]
    await asyncio.gather(*served)


@in_simulated_time
async def test_after_an_outage_no_request_is_refused_because_of_old_durations() -> None:
    lane = Lane(2, 0.3)
    for _ in range(40):
        await asyncio.gather(hold(lane, 10), hold(lane, 10))

    # All slots are taken again, and nobody waits.
    now_quick = [asyncio.create_task(hold(lane, 0.001)) for _ in range(2)]
    await asyncio.sleep(0)
    await hold(lane, 0.001)
    await asyncio.gather(*now_quick)

    # After two seconds of quick work, the estimate is that of quick work.
    for _ in range(2001):
        await hold(lane, 0.001)
    await asyncio.gather(*(hold(lane, 0.001) for _ in range(300)))


@in_simulated_time
async def test_refusals_of_a_sudden_crowd_are_sent_at_once() -> None:
    lane = Lane(4, 1)
    await measured(lane, 0.02)
    began = time.monotonic()
    refused_after: list[float] = []

    async def one(number: int) -> None:
        CALLER.set(Caller(None, number))
        try:
            await hold_as_it_is(lane)
        except Unavailable:
            refused_after.append(time.monotonic() - began)

    await asyncio.gather(*(one(number) for number in range(600)))

    assert len(refused_after) > 350
    assert sum(seconds == 0 for seconds in refused_after) in {250, 251}
    assert max(refused_after) < 1


@in_simulated_time
async def test_clients_that_ignore_retry_after_wait_for_their_refusals() -> None:
    lane = Lane(4, 1)
    await measured(lane, 0.02)
    until = time.monotonic() + 10
    outcomes: Counter[str] = Counter()

    async def impatient(number: int) -> None:
        CALLER.set(Caller(None, number))
        while time.monotonic() < until:
            try:
                await hold_as_it_is(lane)
            except Unavailable:
                outcomes["refused"] += 1
            else:
                outcomes["served"] += 1

    await asyncio.gather(*(impatient(number) for number in range(600)))

    # 250 at once, 250 a second, and those that wait at the end.
    assert outcomes["refused"] < 250 + 10 * 250 + 600
    assert outcomes["served"] > 0.95 * 10 * 4 / 0.02


@pytest.mark.parametrize("connections", [1, 2, 3, 4, 8, 9, 12, 100])
def test_every_kind_of_work_has_a_slot(connections: int) -> None:
    lanes = Admission(connections, 2)
    slots = [lanes.reading.slots, lanes.tallying.slots, lanes.writing.slots]

    assert min(slots) >= 1
    if connections >= 9:
        groups = 2  # one connection each for those that record and those that change tasks
        assert sum(slots) + groups == connections - 2
