"""Limits of time: what is late is cancelled, all else is left alone."""

from __future__ import annotations

import asyncio
import time

import pytest

from audit.deadlines import Late, Limit


async def test_what_is_done_in_time_is_returned() -> None:
    assert await Limit(5).run(asyncio.sleep(0, "done")) == "done"


async def test_what_is_late_is_cancelled_and_says_so() -> None:
    cancelled = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    began = time.monotonic()
    with pytest.raises(Late, match=r"not done within 0\.05 seconds") as late:
        await Limit(0.05).run(work())

    assert late.value.seconds == 0.05
    assert cancelled.is_set()
    assert time.monotonic() - began < 5
    task = asyncio.current_task()
    assert task
    assert not task.cancelling()


async def test_one_timer_ends_each_in_its_own_time() -> None:
    limit = Limit(0.2)
    ended: list[tuple[int, float]] = []

    async def one(number: int) -> None:
        await asyncio.sleep(number * 0.05)
        began = time.monotonic()
        with pytest.raises(Late):
            await limit.run(asyncio.sleep(60))
        ended.append((number, time.monotonic() - began))

    await asyncio.gather(*(one(number) for number in range(5)), limit.run(asyncio.sleep(0.1)))

    assert [number for number, _ in ended] == list(range(5))
    assert all(seconds >= 0.19 for _, seconds in ended)


async def test_an_error_is_passed_on() -> None:
    async def fail() -> None:
        raise ValueError("as it is")

    with pytest.raises(ValueError, match="as it is"):
        await Limit(5).run(fail())


async def test_who_is_cancelled_by_others_is_not_late() -> None:
    limit = Limit(60)
    task = asyncio.create_task(limit.run(asyncio.sleep(60)))
    await asyncio.sleep(0)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task


async def test_who_is_late_and_cancelled_by_others_is_cancelled() -> None:
    async def stubborn() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(0.1)
            raise

    task = asyncio.create_task(Limit(0.02).run(stubborn()))
    await asyncio.sleep(0.06)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelling() == 1


async def test_an_outer_limit_is_not_taken_for_an_inner_one() -> None:
    async def work() -> None:
        with pytest.raises(asyncio.CancelledError):
            await Limit(60).run(asyncio.sleep(60))
        raise asyncio.CancelledError

    with pytest.raises(Late) as late:
        await Limit(0.02).run(work())
    assert late.value.seconds == 0.02


async def test_a_result_in_spite_of_being_late_is_returned() -> None:
    async def stubborn() -> str:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return "done after all"
        return "never"

    assert await Limit(0.02).run(stubborn()) == "done after all"
    await asyncio.sleep(0)
