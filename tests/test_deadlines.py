"""A deadline cancels only what exceeds it."""

from __future__ import annotations

import asyncio
import time

import pytest

from audit.deadlines import Deadline, DeadlineExceeded


async def test_work_within_the_deadline_returns_its_result() -> None:
    assert await Deadline(5).run(asyncio.sleep(0, "done")) == "done"


async def test_work_over_the_deadline_is_cancelled_and_raises() -> None:
    cancelled = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    began = time.monotonic()
    with pytest.raises(DeadlineExceeded, match=r"not done within 0\.05 seconds") as exceeded:
        await Deadline(0.05).run(work())

    assert exceeded.value.seconds == 0.05
    assert cancelled.is_set()
    assert time.monotonic() - began < 5
    task = asyncio.current_task()
    assert task
    assert not task.cancelling()


async def test_concurrent_runs_each_get_the_full_time() -> None:
    deadline = Deadline(0.2)
    ended: list[tuple[int, float]] = []

    async def one(number: int) -> None:
        await asyncio.sleep(number * 0.05)
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            await deadline.run(asyncio.sleep(60))
        ended.append((number, time.monotonic() - began))

    await asyncio.gather(*(one(number) for number in range(5)), deadline.run(asyncio.sleep(0.1)))

    assert [number for number, _ in ended] == list(range(5))
    assert all(seconds >= 0.19 for _, seconds in ended)


async def test_an_error_of_the_work_is_raised() -> None:
    async def fail() -> None:
        raise ValueError("as it is")

    with pytest.raises(ValueError, match="as it is"):
        await Deadline(5).run(fail())


async def test_a_cancelled_task_stays_cancelled() -> None:
    deadline = Deadline(60)
    task = asyncio.create_task(deadline.run(asyncio.sleep(60)))
    await asyncio.sleep(0)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_task_that_exceeds_the_deadline_and_is_cancelled_stays_cancelled() -> None:
    async def stubborn() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(0.1)
            raise

    task = asyncio.create_task(Deadline(0.02).run(stubborn()))
    await asyncio.sleep(0.06)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelling() == 1


async def test_an_outer_deadline_is_not_reported_as_the_inner_one() -> None:
    async def work() -> None:
        with pytest.raises(asyncio.CancelledError):
            await Deadline(60).run(asyncio.sleep(60))
        raise asyncio.CancelledError

    with pytest.raises(DeadlineExceeded) as exceeded:
        await Deadline(0.02).run(work())
    assert exceeded.value.seconds == 0.02


async def test_a_result_after_the_cancellation_is_returned() -> None:
    async def stubborn() -> str:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return "done after all"
        return "never"

    assert await Deadline(0.02).run(stubborn()) == "done after all"
    await asyncio.sleep(0)
