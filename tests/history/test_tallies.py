"""Tallies: totals and places of filters that the database's counts do not know."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import patch

import psycopg
import pytest

from audit.errors import TimedOut, Unavailable
from audit.history import paging
from audit.history.paging import Pager, PageRequest
from audit.history.query import AuditQuery
from audit.history.service import AuditService
from audit.history.tallies import BEGINNING, Tallies, Tally, updated
from audit.postgres import statements
from audit.postgres.pool import fetch_row
from tests.conftest import ago, execute, task
from tests.plans import plan_of, rows_read, statements_of
from tests.waiting import until

FIRST = datetime(2026, 3, 1, tzinfo=UTC)


def day(number: int) -> datetime:
    return FIRST + timedelta(days=number)


#: 5 tasks on the newest day, none the day before, 30 and 2 before that.
TALLY = Tally({day(9): 5, day(7): 30, day(1): 2}, fold=7, server="one")


@pytest.mark.parametrize(
    ("offset", "limit", "since", "until", "skipped"),
    [
        (0, 3, day(9), day(10), 0),
        (0, 5, day(7), day(10), 0),
        (4, 10, day(7), day(10), 0),
        (5, 10, day(7), day(8), 5),
        (34, 1, day(1), day(8), 5),
        (35, 1, day(1), day(2), 35),
        (36, 9, None, day(2), 35),
    ],
)
def test_a_page_lies_in_the_days_that_hold_its_tasks(
    offset: int, limit: int, since: datetime | None, until: datetime, skipped: int
) -> None:
    place = TALLY.place_of(offset, limit)

    assert (since, until, skipped) == (place.page_since, place.page_until, place.skipped)


def test_a_page_behind_the_last_task_lies_nowhere() -> None:
    place = TALLY.place_of(37, 10)

    assert place.page_since == place.page_until
    assert place.skipped == 37


def test_the_day_that_a_cursor_cuts_is_not_reckoned_with() -> None:
    assert TALLY.place_after(day(9) + timedelta(hours=1), 10).page_since == day(7)
    assert TALLY.place_after(day(7) + timedelta(hours=1), 1).page_since == day(1)
    assert TALLY.place_after(day(7) + timedelta(hours=1), 2).page_since is None


def test_a_crowded_place_is_walked_and_a_sparse_one_is_read_whole() -> None:
    crowded = Tally({day(1): 5000, day(0): 5}, fold=1, server="one")

    assert not crowded.place_of(0, 10).is_sparse
    assert crowded.place_of(0, 1000).is_sparse


def test_a_tally_is_brought_up_to_date() -> None:
    row: Any = {
        "tally": f'{{"{day(9).timestamp():.0f}": 6, "{day(7).timestamp():.0f}": 0}}',
        "fold": 8,
        "server": "one",
    }

    tally = updated(TALLY, row, BEGINNING)

    assert tally == Tally({day(9): 6, day(1): 2}, fold=8, server="one")
    assert updated(TALLY, {**row, "fold": 6}, BEGINNING) is None  # type: ignore[arg-type]
    assert updated(TALLY, {**row, "server": "two"}, BEGINNING) is None  # type: ignore[arg-type]


def test_so_many_tallies_are_kept() -> None:
    tallies = Tallies()
    for number in range(101):
        tallies.keep(bytes([number]), TALLY)
        assert tallies.find(bytes([0])) is TALLY

    assert tallies.find(bytes([1])) is None
    assert tallies.find(bytes([2])) is TALLY


async def test_only_what_has_changed_is_read_again(service: AuditService, dsn: str) -> None:
    """One statement, which reads the day that changed and the page."""
    made = [
        task(created_by="ada", created_at=ago(days=n % 100, seconds=n)) for n in range(6000)
    ]  # fmt: skip
    for place in range(0, len(made), 1000):
        await service.record(made[place : place + 1000])
    while await service.upkeep.fold_counts():
        pass
    execute(dsn, "VACUUM ANALYZE")
    query = AuditQuery(created_by="ada", limit=10)
    await service.reading.list_tasks(query)
    await service.record([task(created_by="ada", created_at=ago(hours=1))])

    assert len(await statements_of(service, query)) == 1
    assert rows_read(await plan_of(service, query)) < 300
    assert (await service.reading.list_tasks(query)).total == 6001


async def test_a_page_that_moves_is_found_again(service: AuditService) -> None:
    old = [task(created_by="ada", created_at=ago(days=30, seconds=n)) for n in range(20)]
    await service.record(old)
    query = AuditQuery(created_by="ada", limit=5, offset=10)
    before = await service.reading.list_tasks(query)
    await service.record([task(created_by="ada", created_at=ago(days=2)) for _ in range(8)])

    after = await service.reading.list_tasks(query)

    assert [one["task_id"] for one in old[10:15]] == [str(one.task_id) for one in before.tasks]
    assert [one["task_id"] for one in old[2:7]] == [str(one.task_id) for one in after.tasks]
    assert after.total == 28


async def test_a_crawl_goes_on_where_the_remembered_days_are_too_few(
    service: AuditService,
) -> None:
    tasks = [task(created_by="ada", created_at=ago(days=n)) for n in range(1, 30)]
    await service.record(tasks)
    first = await service.reading.list_tasks(AuditQuery(created_by="ada", limit=5))
    # Another worker has a newer tally of other days; here, they are gone but for two.
    (name,) = service.reading._pager._tallies._kept
    known = service.reading._pager._tallies._kept[name]
    few = dict(sorted(known.days.items())[:2])
    service.reading._pager._tallies._kept[name] = Tally(few, known.fold, known.server)

    page = await service.reading.list_tasks(
        AuditQuery(created_by="ada", limit=5, cursor=first.next_cursor)
    )

    assert [one["task_id"] for one in tasks[5:10]] == [str(one.task_id) for one in page.tasks]
    assert page.total == 29


async def test_a_tally_that_takes_too_long_is_dropped(service: AuditService, dsn: str) -> None:
    """Where years have changed, to tally all at once may be faster than day by day."""
    await service.record([task(created_by="ada")])
    query = AuditQuery(created_by="ada")
    await service.reading.list_tasks(query)
    assert service.reading._pager._tallies._kept
    with psycopg.connect(dsn) as other:
        other.execute("LOCK TABLE task_day_changes")
        asked = asyncio.create_task(service.reading.list_tasks(query))
        waiting = (
            "SELECT pg_cancel_backend(pid) FROM pg_locks"
            " WHERE relation = 'task_day_changes'::regclass AND NOT granted"
        )
        await until(lambda: execute(dsn, waiting))
        with pytest.raises(TimedOut):
            await asked

    assert not service.reading._pager._tallies._kept


async def test_a_clock_before_the_last_one_finds_what_that_cut_off(service: AuditService) -> None:
    """Around midnight, requests may come to the database in another order than their clocks."""
    midnight = ago(days=5).replace(hour=0, minute=0, second=0, microsecond=0)
    around = [task(created_by="ada", created_at=midnight + timedelta(hours=n)) for n in (-2, 1, 3)]
    await service.record(around)
    await service.upkeep.fold_counts()
    query = AuditQuery(created_by="ada", days=1)
    clocks = {-3: 3, 2: 1, -1: 2}

    totals = {
        hours: (
            await service.reading.list_tasks(query, clock=midnight + timedelta(days=1, hours=hours))
        ).total
        for hours in clocks
    }

    assert clocks == totals


async def test_of_an_unknown_filter_first_comes_the_tally(service: AuditService) -> None:
    await service.record([task(created_by="ada", created_at=ago(hours=1))])

    ran = await statements_of(service, AuditQuery(created_by="ada"))

    first_words = [statement.split(":")[0] for statement, _ in ran]
    assert ["-- locate_portion", "-- list_tasks", "-- list_tasks"] == first_words
    assert [0, 100] == [values[10] for _, values in ran[1:]]


async def month_of_tasks(service: AuditService) -> None:
    """Record and fold 40 tasks, in buckets of days."""
    await service.database.pool.execute(
        "CREATE OR REPLACE FUNCTION most_in_whole_bucket() RETURNS bigint"
        " LANGUAGE sql IMMUTABLE RETURN 2"
    )
    await service.record([task(created_by="ada", created_at=ago(days=n)) for n in range(1, 41)])
    await service.upkeep.fold_counts()


async def portions_of(service: AuditService, query: AuditQuery) -> int:
    ran = await statements_of(service, query)
    return sum(statement == statements.LOCATE_PORTION for statement, _ in ran)


async def test_a_tally_is_made_in_portions(service: AuditService) -> None:
    await month_of_tasks(service)
    service.reading._pager = Pager(portion=10)

    assert await portions_of(service, AuditQuery(created_by="ada")) in (4, 5)
    assert await portions_of(service, AuditQuery(created_by="ada", offset=30)) == 0
    assert await portions_of(service, AuditQuery(created_by="ada", since=ago(days=12))) == 2
    assert await portions_of(service, AuditQuery(created_by="ada", until=ago(days=25))) in (2, 3)
    assert await portions_of(service, AuditQuery(created_by="ada", days=5)) == 1
    assert (
        await service.reading.list_tasks(AuditQuery(created_by="ada", since=ago(days=12)))
    ).total == 11


async def test_a_day_with_more_than_a_portion_is_one(service: AuditService) -> None:
    await service.record(
        [task(created_by="ada", created_at=ago(days=3, seconds=n)) for n in range(20)]
    )
    await service.upkeep.fold_counts()
    service.reading._pager = Pager(portion=1)

    assert (await service.reading.list_tasks(AuditQuery(created_by="ada"))).total == 20


async def test_what_changes_between_two_portions_is_tallied(service: AuditService) -> None:
    """In days that are tallied already, and in those to come; folded or not."""
    await month_of_tasks(service)
    service.reading._pager = Pager(portion=7)
    connect, written = service.database.connection, 0

    @asynccontextmanager
    async def busy(*, again: bool) -> AsyncIterator[Any]:
        nonlocal written
        async with connect() as connection:
            yield connection
        for days in (1, 2, 20, 40, 50):
            await service.record([task(created_by="ada", created_at=ago(days=days))])
            written += 1
            if days == 2:
                await service.upkeep.fold_counts()

    query = AuditQuery(created_by="ada")
    await service.reading._pager.tally(busy, PageRequest(query, None, None, 10))

    ran = await statements_of(service, query)
    assert {statements.LIST_TASKS} == {statement for statement, _ in ran}
    assert written >= 5 * 5
    assert (await service.reading.list_tasks(query)).total == 40 + written


async def test_an_interrupted_tally_goes_on_where_it_was(service: AuditService) -> None:
    await month_of_tasks(service)
    service.reading._pager = Pager(portion=10)
    connect, left = service.database.connection, 2

    @asynccontextmanager
    async def failing(*, again: bool) -> AsyncIterator[Any]:
        nonlocal left
        if not left:
            raise Unavailable("gone")
        left -= 1
        async with connect() as connection:
            yield connection

    query = AuditQuery(created_by="ada")
    with pytest.raises(Unavailable):
        await service.reading._pager.tally(failing, PageRequest(query, None, None, 10))

    assert await portions_of(service, query) in (2, 3)
    assert (await service.reading.list_tasks(query)).total == 40


async def test_those_who_ask_the_same_at_once_tally_it_once(service: AuditService) -> None:
    await month_of_tasks(service)
    ran: list[str] = []

    async def watched(connection: Any, statement: str, *values: object) -> Any:
        ran.append(statement)
        return await fetch_row(connection, statement, *values)

    with patch.object(paging, "fetch_row", watched):
        pages = await asyncio.gather(
            *(service.reading.list_tasks(AuditQuery(created_by="ada", offset=n)) for n in range(20))
        )

    assert {40} == {page.total for page in pages}
    assert ran.count(statements.LOCATE_PORTION) == 1
    assert ran.count(statements.LIST_TASKS) == 21
