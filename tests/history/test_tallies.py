"""Tallies give the totals and locations for filters that the counts do not know."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from audit.errors import TimedOut, Unavailable
from audit.history.location import NOWHERE, PageRequest
from audit.history.paging import Pager
from audit.history.query import AuditQuery
from audit.history.service import AuditService
from audit.history.tallies import Tally
from audit.postgres import migrate, statements
from audit.postgres.pool import open_pool
from audit.settings import Settings
from tests.conftest import ago, execute, task
from tests.plans import explained, names_of, rows_read, statements_of, watched_statements
from tests.waiting import until

FIRST = datetime(2026, 3, 1, tzinfo=UTC)
PROJECT = UUID("5eed0000-0000-4000-8000-000000000001")


def day(number: int) -> datetime:
    return FIRST + timedelta(days=number)


#: 5 tasks on the newest day, none the day before, 30 and 2 before that.
TALLY = Tally({day(9): 5, day(7): 30, day(1): 2}, position=7, server="one")


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
def test_a_page_is_located_in_the_days_of_its_tasks(
    offset: int, limit: int, since: datetime | None, until: datetime, skipped: int
) -> None:
    location = TALLY.location_of(offset, limit)

    assert (since, until, skipped) == (location.since, location.until, location.skipped)


def test_a_page_after_the_last_task_has_no_days() -> None:
    assert TALLY.location_of(37, 10) == NOWHERE


def test_a_page_after_a_cursor_may_begin_on_the_day_of_the_cursor_or_later() -> None:
    assert TALLY.location_after(day(9) + timedelta(hours=1), 10).since == day(7)
    assert TALLY.location_after(day(7) + timedelta(hours=1), 1).since == day(1)
    assert TALLY.location_after(day(7) + timedelta(hours=1), 2).since is None


def test_days_with_few_tasks_are_read_whole_and_others_in_index_order() -> None:
    crowded = Tally({day(1): 5000, day(0): 5}, position=1, server="one")

    assert not crowded.location_of(0, 10).is_sparse
    assert crowded.location_of(0, 1000).is_sparse


async def test_tallies_of_the_filters_used_last_are_kept(service: AuditService) -> None:
    service.sources.primary.pager = Pager(short=0)
    for number in range(101):
        await service.audit_query(created_by=f"person {number}")
        await service.audit_query(created_by="person 0")

    names = [await names_of(service, AuditQuery(created_by=f"person {n}")) for n in (0, 2, 1)]

    assert [False, False, True] == ["read_tally" in one for one in names]
    assert not any("tally_days" in one for one in names), "the database has the tally"


async def test_tally_is_made_again_on_another_server(service: AuditService, empty_dsn: str) -> None:
    """After a failover, positions of the log may have other events."""
    query = AuditQuery(created_by="ada")
    await service.record([task(created_by="ada")])
    assert (await service.reading.list_tasks(query)).total == 1
    migrate.apply(empty_dsn)
    async with open_pool(Settings(pool_size=1), empty_dsn) as pool:
        other = AuditService(pool)
        await other.record([task(created_by="ada", created_at=ago(days=n)) for n in (1, 40)])
        other.sources.primary.pager = service.sources.primary.pager

        assert (await other.reading.list_tasks(query)).total == 2


async def record_by_ada(service: AuditService, dsn: str) -> None:
    """Record and fold 6000 tasks of 100 days, every tenth of them in production."""
    made = [
        task(
            created_by="ada",
            created_at=ago(days=n % 100, seconds=n),
            outcome={"environment": "prod" if n % 10 == 0 else "test"},
        )
        for n in range(6000)
    ]
    for place in range(0, len(made), 1000):
        await service.record(made[place : place + 1000])
    while await service.upkeep.fold_counts():
        pass
    execute(dsn, "VACUUM ANALYZE")


async def test_events_keep_a_tally_up_to_date(service: AuditService, dsn: str) -> None:
    await record_by_ada(service, dsn)
    query = AuditQuery(created_by="ada", limit=10)
    await service.reading.list_tasks(query)
    await service.record([task(created_by="ada", created_at=ago(hours=1))])

    ran = await statements_of(service, query)

    assert [statements.LIST_TASKS, statements.TALLY_CHANGES, statements.LIST_TASKS] == [
        statement for statement, _ in ran
    ]
    assert sum([rows_read(await explained(service, *one)) for one in ran]) < 300
    page = await service.reading.list_tasks(query)
    assert page.total == 6001
    assert "tally_days" not in await names_of(service, query)
    assert ["list_tasks"] == await names_of(service, query)


async def test_days_are_tallied_again_if_events_do_not_tell_the_filter(
    service: AuditService, dsn: str
) -> None:
    """The day that changed, and the page."""
    await record_by_ada(service, dsn)
    query = AuditQuery(outcome='{"environment":"prod"}', limit=10)
    await service.reading.list_tasks(query)
    await service.record(
        [task(created_at=ago(hours=n), outcome={"environment": "prod"}) for n in (1, 1000)]
    )

    ran = await statements_of(service, query)

    assert ["list_tasks", "tally_changes", "tally_days", "tally_days", "list_tasks"] == [
        statement.name for statement, _ in ran
    ]
    assert sum([rows_read(await explained(service, *one)) for one in ran]) < 300
    page = await service.reading.list_tasks(query)
    assert page.total == 602


async def test_tally_is_made_again_if_many_days_have_changed(service: AuditService) -> None:
    query = AuditQuery(outcome='{"environment":"prod"}', limit=10)
    made = [task(created_at=ago(days=n), outcome={"environment": "prod"}) for n in range(120)]
    await service.record(made)
    assert (await service.reading.list_tasks(query)).total == 120
    await service.record([{**one, "task_id": str(uuid4())} for one in made])
    assert (await service.reading.list_tasks(query)).total == 240
    await service.upkeep.fold_counts()

    assert "locate_portion" in await names_of(service, query)
    assert (await service.reading.list_tasks(query)).total == 240


UNTIL = ago(hours=100)
OF_9_DAYS = "created_at > date_trunc('second', now()) - interval '9 days'"
FILTERS: tuple[tuple[dict[str, Any], str], ...] = (
    ({"created_by": "ada"}, "created_by = 'ada'"),
    ({"created_by": "ada", "status": "executing"}, "created_by = 'ada' AND status = 'executing'"),
    ({"project_id": str(PROJECT)}, f"project_id = '{PROJECT}'"),
    ({"service": ["a", "b"]}, "services_touched @> '{a,b}'"),
    (
        {"created_by": "ada", "intent": "x", "until": UNTIL.isoformat()},
        f"created_by = 'ada' AND intent = 'x' AND created_at < '{UNTIL}'",
    ),
    ({"service": ["a", "b"], "days": 9}, f"services_touched @> '{{a,b}}' AND {OF_9_DAYS}"),
    ({"outcome": '{"n":1}'}, """outcome @> '{"n":1}'"""),
)


async def assert_exact(service: AuditService, dsn: str) -> None:
    """Compare the totals of all filters with plain SQL."""
    for asked, condition in FILTERS:
        page = await service.audit_query(**asked)
        assert [(page.total,)] == execute(dsn, f"SELECT count(*) FROM tasks WHERE {condition}")


async def change_some(service: AuditService, rng: Random) -> None:
    """Record tasks that match some of the filters or none, and change a few."""
    done = await service.record(
        [
            task(
                status="pending",
                created_by=rng.choice(("ada", "bob")),
                project_id=rng.choice((None, str(PROJECT))),
                services_touched=rng.sample(["a", "b", "c"], rng.randrange(4)),
                outcome={"action_type": rng.choice("xy"), "n": rng.randrange(2)},
                created_at=ago(hours=rng.randrange(500), minutes=30),
            )
            for _ in range(rng.choice((1, 1, 30)))
        ]
    )
    change = {"status": "executing", "services_touched": ["a", "b"], "outcome": {"n": 1}}
    await service.update(rng.choice(done.task_ids), change)


async def test_tally_is_made_once_for_all_processes(
    service: AuditService, dsn: str, settings: Settings
) -> None:
    """Also for those that start later, while others record and fold."""
    rng = Random(7)
    service.sources.primary.pager = Pager(short=0)
    for _ in range(10):
        await change_some(service, rng)
    await assert_exact(service, dsn)
    for turn in range(6):
        async with open_pool(settings, dsn) as pool:
            started_later = AuditService(pool)
            started_later.sources.primary.pager = Pager(short=0)
            for worker in (started_later, service):
                await change_some(service, rng)
                if turn % 2:
                    await service.upkeep.fold_counts()
                await assert_exact(worker, dsn)

    started_later = AuditService(service.database.pool)
    started_later.sources.primary.pager = Pager(short=0)
    for asked, _ in FILTERS:
        names = await names_of(started_later, AuditQuery.model_validate(asked))
        assert "read_tally" in names
        assert "locate_portion" not in names


async def test_processes_share_the_work_of_a_tally(service: AuditService) -> None:
    await record_months(service)
    others = [AuditService(service.database.pool) for _ in range(3)]
    for one in others:
        one.sources.primary.pager = Pager(portion=10 * TASKS_A_DAY, short=0)

    async with watched_statements(service) as ran:
        pages = await asyncio.gather(
            *(one.reading.list_tasks(AuditQuery(created_by="ada")) for one in others)
        )

    assert {DAYS * TASKS_A_DAY} == {page.total for page in pages}
    assert [statement for statement, _ in ran].count(statements.LOCATE_PORTION) in (6, 7)


async def test_tally_is_saved_again_after_many_events(service: AuditService) -> None:
    query = AuditQuery(created_by="ada")
    service.sources.primary.pager = Pager(portion=1000, short=0)
    await service.record([task(created_by="ada")])
    await service.reading.list_tasks(query)
    await service.record([task(created_by="ada") for _ in range(8)])
    await service.upkeep.fold_counts()
    await service.reading.list_tasks(query)
    assert "save_tally" not in await names_of(service, query)
    await service.record([task(created_by="ada")])
    await service.upkeep.fold_counts()
    await service.reading.list_tasks(query)
    await service.record([task(created_by="ada")])

    assert "save_tally" in await names_of(service, query)
    assert (await service.reading.list_tasks(query)).total == 11


async def test_tally_is_made_again_after_too_many_events(service: AuditService) -> None:
    query = AuditQuery(created_by="ada")
    service.sources.primary.pager = Pager(portion=10, short=0)
    await service.record([task(created_by="ada")])
    await service.reading.list_tasks(query)
    await service.record([task(created_by="ada") for _ in range(11)])
    await service.upkeep.fold_counts()

    assert "locate_portion" in await names_of(service, query)
    assert (await service.reading.list_tasks(query)).total == 12


async def test_session_that_may_not_write_tallies_for_itself(
    service: AuditService, dsn: str
) -> None:
    await service.record([task(created_by="ada")])
    async with open_pool(Settings(pool_size=1), dsn) as pool:
        await pool.execute("SET default_transaction_read_only = on")
        reader = AuditService(pool)
        reader.sources.primary.pager = Pager(short=0)
        query = AuditQuery(created_by="ada")

        assert "save_tally" not in await names_of(reader, query)
        assert "tally_days" not in await names_of(reader, query)
        assert (await reader.reading.list_tasks(query)).total == 1
    assert execute(dsn, "SELECT count(*) FROM task_tallies") == [(0,)]


async def test_rebuilding_the_counts_forgets_saved_tallies(service: AuditService, dsn: str) -> None:
    await service.record([task(created_by="ada")])
    await service.upkeep.fold_counts()
    service.sources.primary.pager = Pager(short=0)
    await service.audit_query(created_by="ada")
    execute(dsn, "UPDATE task_tallies SET days = '{}'")
    other = AuditService(service.database.pool)
    other.sources.primary.pager = Pager(short=0)
    assert (await other.audit_query(created_by="ada")).total == 0

    await service.upkeep.rebuild_counts()

    assert (await AuditService(service.database.pool).audit_query(created_by="ada")).total == 1


async def test_a_page_that_moved_to_other_days_is_found(service: AuditService) -> None:
    old = [task(created_by="ada", created_at=ago(days=30, seconds=n)) for n in range(20)]
    await service.record(old)
    query = AuditQuery(created_by="ada", limit=5, offset=10)
    before = await service.reading.list_tasks(query)
    await service.record([task(created_by="ada", created_at=ago(days=2)) for _ in range(8)])

    after = await service.reading.list_tasks(query)

    assert [one["task_id"] for one in old[10:15]] == [str(one.task_id) for one in before.tasks]
    assert [one["task_id"] for one in old[2:7]] == [str(one.task_id) for one in after.tasks]
    assert after.total == 28


async def test_a_crawl_continues_in_a_process_with_an_older_tally(service: AuditService) -> None:
    other = AuditService(service.database.pool)
    query = AuditQuery(created_by="ada", limit=5)
    await service.record([task(created_by="ada", created_at=ago(days=n)) for n in (100, 101)])
    await service.reading.list_tasks(query)
    tasks = [task(created_by="ada", created_at=ago(days=n)) for n in range(1, 30)]
    await service.record(tasks)
    first = await other.reading.list_tasks(query)

    page = await service.reading.list_tasks(
        AuditQuery(created_by="ada", limit=5, cursor=first.next_cursor)
    )

    assert [one["task_id"] for one in tasks[5:10]] == [str(one.task_id) for one in page.tasks]
    assert page.total == 31


async def test_cancelled_update_leaves_the_tally_as_it_was(service: AuditService, dsn: str) -> None:
    await service.record([task(created_by="ada")])
    query = AuditQuery(created_by="ada")
    await service.reading.list_tasks(query)
    await service.record([task(created_by="ada")])
    with psycopg.connect(dsn) as other:
        other.execute("LOCK TABLE task_log_marks")
        asked = asyncio.create_task(service.reading.list_tasks(query))
        waiting = (
            "SELECT pg_cancel_backend(pid) FROM pg_locks"
            " WHERE relation = 'task_log_marks'::regclass AND NOT granted"
        )
        await until(lambda: execute(dsn, waiting))
        with pytest.raises(TimedOut):
            await asked

    assert (await service.reading.list_tasks(query)).total == 2


async def test_a_request_with_an_earlier_clock_finds_older_tasks(service: AuditService) -> None:
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


async def test_unknown_filter_is_tallied_first(service: AuditService) -> None:
    service.sources.primary.pager = Pager(short=0)
    await service.record([task(created_by="ada", created_at=ago(hours=1))])

    names = await names_of(service, AuditQuery(created_by="ada"))

    assert ["read_tally", "locate_portion", "tally_days", "save_tally"] == names[:4]
    assert ["tally_changes", "list_tasks"] == names[4:]


async def test_tally_of_a_short_history_is_not_saved(service: AuditService, dsn: str) -> None:
    await record_months(service)
    query = AuditQuery(created_by="ada")

    assert await names_of(service, query) == [
        "locate_portion",
        "tally_days",
        "tally_changes",
        "list_tasks",
    ]
    assert (await service.reading.list_tasks(query)).total == DAYS * TASKS_A_DAY
    assert execute(dsn, "SELECT count(*) FROM task_tallies") == [(0,)]
    service.sources.primary.pager = Pager(short=DAYS * TASKS_A_DAY - 1)
    assert "save_tally" in await names_of(service, query)


#: Two months with more tasks than fit into one bucket, so that the counts know their days.
DAYS = 61
TASKS_A_DAY = 20


async def record_months(service: AuditService) -> None:
    """Record and fold tasks on 61 days from FIRST on, 20 a day."""
    await service.record(
        [
            task(created_by="ada", created_at=day(n) + timedelta(minutes=m))
            for n in range(DAYS)
            for m in range(TASKS_A_DAY)
        ]
    )
    await service.upkeep.fold_counts()


async def portions_of(service: AuditService, **filters: Any) -> int:
    """How many portions are tallied to answer a query."""
    names = await names_of(service, AuditQuery(created_by="ada", **filters))
    return names.count("locate_portion")


async def test_tally_is_made_in_portions(service: AuditService) -> None:
    await record_months(service)
    service.sources.primary.pager = Pager(portion=10 * TASKS_A_DAY, short=0)

    assert await portions_of(service) in (6, 7)
    assert await portions_of(service, offset=30) == 0
    assert await portions_of(service, since=day(DAYS - 12)) == 2
    assert await portions_of(service, until=day(25)) in (2, 3)
    assert await portions_of(service, since=day(DAYS - 5)) == 1
    query = AuditQuery(created_by="ada", since=day(DAYS - 12))
    assert (await service.reading.list_tasks(query)).total == 12 * TASKS_A_DAY


async def test_day_with_more_tasks_than_a_portion_is_one_portion(service: AuditService) -> None:
    await service.record(
        [task(created_by="ada", created_at=ago(days=3, seconds=n)) for n in range(20)]
    )
    await service.upkeep.fold_counts()
    service.sources.primary.pager = Pager(portion=1, short=0)

    assert (await service.reading.list_tasks(AuditQuery(created_by="ada"))).total == 20


async def test_changes_between_two_portions_are_tallied(service: AuditService) -> None:
    """In days that are tallied already, and in those to come; folded or not."""
    await record_months(service)
    service.sources.primary.pager = Pager(portion=7 * TASKS_A_DAY, short=0)
    connect, written = service.database.connection, 0

    @asynccontextmanager
    async def busy(*, again: bool) -> AsyncIterator[Any]:
        nonlocal written
        async with connect() as connection:
            yield connection
        for number in (60, 59, 40, 20, -10):
            await service.record([task(created_by="ada", created_at=day(number))])
            written += 1
            if number == 59:
                await service.upkeep.fold_counts()

    query = AuditQuery(created_by="ada")
    await service.sources.primary.pager.tally(busy, PageRequest(query, None, 10))

    assert "locate_portion" not in await names_of(service, query)
    assert written >= 5 * 5
    assert (await service.reading.list_tasks(query)).total == DAYS * TASKS_A_DAY + written


async def test_interrupted_tally_is_continued(service: AuditService) -> None:
    await record_months(service)
    service.sources.primary.pager = Pager(portion=10 * TASKS_A_DAY, short=0)
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
        await service.sources.primary.pager.tally(failing, PageRequest(query, None, 10))

    assert await portions_of(service) in (4, 5)
    assert (await service.reading.list_tasks(query)).total == DAYS * TASKS_A_DAY


async def test_concurrent_requests_share_one_tally(service: AuditService) -> None:
    await record_months(service)
    async with watched_statements(service) as ran:
        pages = await asyncio.gather(
            *(service.reading.list_tasks(AuditQuery(created_by="ada", offset=n)) for n in range(20))
        )

    assert {DAYS * TASKS_A_DAY} == {page.total for page in pages}
    assert [1, 1, 20] == [
        [statement for statement, _ in ran].count(one)
        for one in (statements.LOCATE_PORTION, statements.TALLY_DAYS, statements.LIST_TASKS)
    ]
