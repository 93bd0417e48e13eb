"""A page that is made from changes is the page that the query returns, byte by byte."""

from __future__ import annotations

import random
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from audit.history.changes import ChangeFilter, Changes
from audit.history.freshness import Version
from audit.history.patching import PageInList, widened
from audit.history.query import AuditQuery
from audit.history.service import AuditService
from tests.conftest import ago, execute, task

STATES = ("pending", "approved", "executing", "completed", "failed")
MAX_BYTES = 1_000_000
QUESTIONS: list[dict[str, Any]] = [
    {"limit": 5},
    {"limit": 1000},
    {"service": "a", "limit": 5},
    {"service": ["a", "b"], "limit": 20},
    {"status": "pending", "limit": 5},
    {"status": ["failed", "completed"], "intent": "x", "limit": 3},
    {"created_by": "ada", "limit": 5},
    {"days": 2, "limit": 5},
    {"until": ago(hours=30).isoformat(), "limit": 5},
    {"offset": 4, "limit": 5},
    {"offset": 25, "limit": 5, "status": "completed"},
    {"offset": 110, "limit": 2},
]


async def read(service: AuditService, changes: Changes) -> Version:
    """Read the version and the changes since the last one."""
    async with service.database.pool.acquire() as connection:
        return await changes.read(connection)


@pytest.fixture
async def changes(service: AuditService) -> Changes:
    """The changes from now on."""
    changes = Changes()
    changes.reads_documents = True
    await read(service, changes)
    return changes


def some_task(rng: random.Random) -> dict[str, Any]:
    return task(
        status=rng.choice(STATES),
        created_by=rng.choice((None, "ada", "alan")),
        services_touched=rng.sample(["a", "b", "c"], rng.randrange(4)),
        outcome=rng.choice(
            (None, {"action_type": "x", "n": 1.50}, {"action_type": "y", "\u00e9": 10**400})
        ),
        error_message=rng.choice((None, 'line\nbreak "quoted" \\ \u2028')),
        created_at=ago(hours=rng.choice((0, 0, 1, 30, 70)), seconds=rng.randrange(100)),
    )


@pytest.mark.parametrize("seed", range(3))
async def test_page_made_from_changes_is_the_computed_one(
    service: AuditService, changes: Changes, seed: int
) -> None:
    rng = random.Random(seed)
    made: Counter[bool] = Counter()
    pages: dict[int, PageInList] = {}
    recorded = [some_task(rng) for _ in range(rng.choice((1, 30, 130)))]
    await service.record(recorded)
    await read(service, changes)
    for turn in range(30):
        number = changes.number
        new = [some_task(rng) for _ in range(rng.randrange(3))]
        if new:
            await service.record(new)
        recorded += new
        for one in rng.sample(recorded, rng.randrange(3)):
            if one["status"] in STATES[:3]:
                one["status"] = rng.choice(STATES[STATES.index(one["status"]) :])
                change = {"status": one["status"], "services_touched": rng.sample("abc", 2)}
                await service.update(one["task_id"], change)
        if turn % 7 == 0:
            await service.upkeep.fold_counts()
        version = await read(service, changes)
        since = changes.since(number)
        assert since is not None
        for place, asked in enumerate(QUESTIONS):
            query = AuditQuery.model_validate(asked)
            computed = await service.reading.list_tasks(query, clock=version.clock)
            if place in pages:
                after = pages.pop(place).after(since, ChangeFilter(query, version.clock))
                made[after is not None] += 1
                if after is not None:
                    page = after.to_task_page(version.clock, MAX_BYTES)
                    assert page is not None
                    assert computed.to_json() == page.to_json()
                    pages[place] = after
            if place not in pages:
                page = computed
                if rng.random() < 0.7:
                    wide = widened(query)
                    assert wide is not None
                    page = await service.reading.list_tasks(wide, clock=version.clock)
                part = PageInList.of(query, page)
                if part is not None:
                    pages[place] = part

    assert made[True] > 5 * made[False]


async def first_page(service: AuditService, **asked: Any) -> tuple[AuditQuery, PageInList | None]:
    query = AuditQuery.model_validate(asked)
    return query, PageInList.of(query, await service.reading.list_tasks(query))


@pytest.mark.parametrize(
    "asked",
    [{"offset": 3}, {"outcome": '{"n":1}'}, {"total": "none"}],
    ids=["offset past the end", "outcome", "total"],
)
async def test_changes_do_not_tell_every_page(service: AuditService, asked: dict[str, Any]) -> None:
    await service.record([task(), task()])

    assert (await first_page(service, **asked))[1] is None


async def test_task_that_leaves_a_full_page_is_replaced_by_one_that_no_change_tells(
    service: AuditService, changes: Changes
) -> None:
    tasks = [task(status="pending", created_at=ago(seconds=n)) for n in range(3)]
    await service.record(tasks)
    version, number = await read(service, changes), changes.number
    full = await first_page(service, status="pending", limit=2)
    whole = await first_page(service, status="pending", limit=3)
    await service.update(tasks[0]["task_id"], {"status": "failed"})
    await read(service, changes)

    after = [
        page.after(changes.since(number) or (), ChangeFilter(query, version.clock))
        for query, page in (full, whole)
        if page
    ]

    assert [None, 2] == [page and page.total for page in after]


async def test_long_task_is_not_read_with_the_changes(
    service: AuditService, changes: Changes
) -> None:
    number = changes.number
    query, page = await first_page(service)
    await service.record([task(request_text="x" * 20_000)])
    version = await read(service, changes)

    assert page
    assert page.after(changes.since(number) or (), ChangeFilter(query, version.clock)) is None


async def test_page_that_may_be_too_long_is_not_made(service: AuditService) -> None:
    await service.record([task(), task()])
    _, page = await first_page(service)

    assert page
    assert page.to_task_page(datetime.now(UTC), 3 * 1024) is not None
    assert page.to_task_page(datetime.now(UTC), 2 * 1024) is None


async def test_imported_task_was_there_before(
    service: AuditService, dsn: str, changes: Changes
) -> None:
    execute(
        dsn,
        "ALTER TABLE tasks DISABLE TRIGGER queue_recorded",
        "INSERT INTO tasks (task_id, request_text) VALUES (gen_random_uuid(), 'x')",
        "ALTER TABLE tasks ENABLE ALWAYS TRIGGER queue_recorded",
    )
    await service.upkeep.rebuild_counts()
    number = changes.number
    query, page = await first_page(service)
    async for _ in service.backfill.run():
        pass
    version = await read(service, changes)

    since = changes.since(number)
    assert since
    assert page
    after = page.after(since, ChangeFilter(query, version.clock + timedelta(days=1)))
    assert after is not None
    assert after.total == 1
