"""Callers at the same time share one run; what becomes of it if some of them leave."""

from __future__ import annotations

import asyncio

import pytest

from audit.once import Once
from tests.waiting import until


async def test_callers_at_the_same_time_share_one_run() -> None:
    started = 0

    async def run() -> int:
        nonlocal started
        started += 1
        await asyncio.sleep(0.01)
        return started

    once: Once[int] = Once()

    assert await asyncio.gather(*(once.result(run) for _ in range(5))) == [1] * 5
    assert await once.result(run) == 2


async def test_a_failure_reaches_all_callers_and_is_not_kept() -> None:
    async def fail() -> int:
        await asyncio.sleep(0)
        raise ValueError

    once: Once[int] = Once()
    results = await asyncio.gather(*(once.result(fail) for _ in range(3)), return_exceptions=True)

    assert [type(result) for result in results] == [ValueError] * 3
    assert await once.result(lambda: asyncio.sleep(0, 1)) == 1


async def test_the_run_is_cancelled_with_its_last_caller() -> None:
    ended = []

    async def run() -> int:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(1)
        return 1

    once: Once[int] = Once()
    callers = [asyncio.create_task(once.result(run)) for _ in range(3)]
    await asyncio.sleep(0)
    for caller in callers[:2]:
        caller.cancel()
    await asyncio.sleep(0.01)
    assert ended == []
    callers[2].cancel()
    later = asyncio.create_task(once.result(run))
    await until(lambda: ended == [1])

    assert not later.done()
    later.cancel()
    for caller in (*callers, later):
        with pytest.raises(asyncio.CancelledError):
            await caller
