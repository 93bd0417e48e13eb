"""What the statements of all lists read: bounded, however long the history.

Every shape of filter is asked with values that are frequent, rare, only old, or absent, for its
first page, a deep page, and a page by cursor. The bounds are far below the size of the history; the
same ones hold for a history of any size, since counts are read in buckets of at most 500 tasks.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from audit.history.demo import generate
from audit.history.paging import Pager
from audit.history.query import AuditQuery, TaskQuery
from audit.history.service import AuditService
from audit.postgres.pool import open_pool
from audit.settings import Settings
from tests.conftest import _database, task
from tests.plans import buffers_read, names_of, plan_of, rows_read

TASKS = 30_000
UNTIL = datetime.now(UTC)
#: So many are of this very microsecond.
CROWD_TASKS = 100_000
CROWD = UNTIL - timedelta(days=77)
#: So many are within this second.
BURST_TASKS = 6000
BURST = (UNTIL - timedelta(days=33)).replace(microsecond=0)
#: So many are on this day. With a million, these tests take some minutes longer.
BUSY_TASKS = int(os.environ.get("AUDIT_TEST_BUSY_TASKS", "100000"))
BUSY = (UNTIL - timedelta(days=200)).replace(hour=0, minute=0, second=0, microsecond=0)
#: And blocks of 8 KiB.
MOST_ROWS = 4_000


@pytest.fixture(scope="module")
def history(postgres: str, template: str) -> Iterator[str]:
    yield from _database(postgres, template)


@pytest.fixture
async def service(history: str) -> AsyncIterator[AuditService]:
    async with open_pool(Settings(pool_size=1, statement_timeout_seconds=600), history) as pool:
        service = AuditService(pool)
        if await service.get_task_count() == 0:
            await fill(service)
        yield service


async def fill(service: AuditService) -> None:
    made = list(generate(TASKS, days=365, until=UNTIL))
    made += [
        task(
            services_touched=["retired", "legacy"],
            created_at=UNTIL - timedelta(days=360, minutes=n),
        )
        for n in range(900)
    ]
    made += [
        task(services_touched=["burst"], created_at=BURST + timedelta(microseconds=n * 100))
        for n in range(BURST_TASKS)
    ]
    for year in range(2017, 2026):
        made += [
            task(services_touched=["perennial"], created_at=datetime(year, month, 3, tzinfo=UTC))
            for month in range(1, 13)
        ]
    for place in range(0, len(made), 5000):
        await service.record(made[place : place + 5000])
    await insert(service, CROWD_TASKS, CROWD, "0 s", "(array['crowd', 'mob'])[: 1 + n % 2]")
    await insert(service, BUSY_TASKS, BUSY, f"{86_000 / BUSY_TASKS} s", "array['busy']")
    # A fold splits buckets for two seconds at most.
    due = "SELECT EXISTS (SELECT FROM task_count_splits_due)"
    while await service.upkeep.fold_counts() or await service.database.pool.fetchval(due):
        pass
    await service.database.pool.execute("VACUUM ANALYZE")


async def insert(
    service: AuditService, tasks: int, first: datetime, apart: str, services: str
) -> None:
    """Insert many tasks, so much time apart; `services` is an expression of their number, n."""
    partition = "SELECT make_task_partition($1, 'month')"
    await service.database.pool.execute(partition, first)
    await service.database.pool.execute(
        "INSERT INTO tasks (task_id, created_at, request_text, status, services_touched)"
        " SELECT gen_random_uuid(), $1::timestamptz + n * $2::text::interval, 'x',"
        f" CASE n % 50 WHEN 0 THEN 'failed' ELSE 'completed' END::task_status, {services}"
        " FROM generate_series(1, $3) AS n",
        first,
        apart,
        tasks,
        timeout=600,
    )


SHAPES: dict[str, dict[str, Any]] = {
    "no filter": {},
    "failures of a week": {"status": "failed", "days": 7},
    "frequent service": {"service": "payments"},
    "frequent service, a week": {"service": "payments", "days": 7},
    "middling service": {"service": "payments-api"},
    "rare service": {"service": "tax-loader"},
    "retired service": {"service": "retired"},
    "perennial service": {"service": "perennial"},
    "absent service": {"service": "nobody"},
    "crowd of one microsecond": {"service": "crowd"},
    "burst of one second": {"service": "burst"},
    "busy day": {"service": "busy"},
    "failures of a busy day": {"service": "busy", "status": "failed"},
    "an afternoon of a busy day": {
        "service": "busy",
        "since": BUSY + timedelta(hours=12, milliseconds=7),
        "until": BUSY + timedelta(hours=17, milliseconds=3),
    },
    "state and service, a month": {"status": "failed", "service": "search", "days": 30},
    "and an intent": {"status": "failed", "service": "search", "intent": "rotate_secret"},
    "frequent service, rare state and intent": {
        "service": "payments",
        "status": "rejected",
        "intent": "revoke_access",
    },
    "two states": {"status": ["failed", "rejected"]},
    "rare intent": {"intent": "revoke_access"},
    "no match": {"service": "retired", "days": 30},
    "a window": {
        "service": "payments",
        "since": UNTIL - timedelta(days=200),
        "until": UNTIL - timedelta(days=50, seconds=12),
    },
    "a window in the burst": {
        "since": BURST + timedelta(milliseconds=100),
        "until": BURST + timedelta(milliseconds=200),
    },
    "all before the crowd": {"until": CROWD},
}


#: Nothing is finer than a second: a page within a crowded one may read all of it, and its total.
CROWDED = {
    "crowd of one microsecond",
    "burst of one second",
    "all before the crowd",
    "two services of a crowd",
}


async def hold_to_bounds(
    service: AuditService, query: TaskQuery, most_rows: int = MOST_ROWS
) -> None:
    plan = await plan_of(service, query)

    assert rows_read(plan) <= most_rows, json.dumps(plan)
    assert buffers_read(plan) <= most_rows, json.dumps(plan)


@pytest.mark.parametrize("shape", SHAPES)
async def test_first_page_and_total(service: AuditService, shape: str) -> None:
    await hold_to_bounds(service, AuditQuery.model_validate(SHAPES[shape]), most_rows(shape))


def most_rows(shape: str) -> int:
    return 2 * CROWD_TASKS if shape in CROWDED else MOST_ROWS


@pytest.mark.parametrize("shape", SHAPES)
async def test_deep_page(service: AuditService, shape: str) -> None:
    total = (await service.reading.list_tasks(AuditQuery.model_validate(SHAPES[shape]))).total or 0
    for offset in (total // 2, total, total + 1000):
        await hold_to_bounds(
            service,
            AuditQuery.model_validate({**SHAPES[shape], "offset": offset}),
            most_rows(shape),
        )


@pytest.mark.parametrize("shape", SHAPES)
async def test_page_by_cursor(service: AuditService, shape: str) -> None:
    asked = SHAPES[shape]
    total = (await service.reading.list_tasks(AuditQuery.model_validate(asked))).total or 0
    page = await service.reading.list_tasks(
        AuditQuery.model_validate({**asked, "offset": total // 2, "limit": 10})
    )
    if page.next_cursor is not None:
        await hold_to_bounds(
            service,
            AuditQuery.model_validate({**asked, "cursor": page.next_cursor}),
            most_rows(shape),
        )


@pytest.mark.parametrize("shape", SHAPES)
async def test_page_is_located_once(service: AuditService, shape: str) -> None:
    """The second request of a page reads it at once. More statements: the location did not fit."""
    service.sources.primary.pager = Pager()
    query = AuditQuery.model_validate(SHAPES[shape])

    first, again = [await names_of(service, query) for _ in range(2)]

    # A window within one bucket has nothing to be counted: it is tallied.
    tally = ["locate_portion", "tally_days", "tally_changes"]
    tallied = tally if shape == "a window in the burst" else []
    assert ["locate_page", *tallied, "list_tasks"] == first
    assert ["list_tasks"] == again


#: The counts do not know these. A window that moves with the clock is tallied again each second.
RECENTLY = (UNTIL - timedelta(days=3)).isoformat()
UNCOUNTED: dict[str, dict[str, Any]] = {
    "person": {"created_by": "ada@example.com", "since": RECENTLY},
    "project": {"project_id": "5eed0000-0000-4000-8000-000000000003", "since": RECENTLY},
    "outcome": {"outcome": '{"action_type":"revoke_access"}'},
    "two services, rare together": {"service": ["tax-loader", "payments"]},
    "two services, frequent together": {"service": ["payments", "payments-api"]},
    "two services of a crowd": {"service": ["crowd", "mob"]},
    "two services, only old": {"service": ["retired", "legacy"]},
}


@pytest.mark.parametrize("shape", UNCOUNTED)
async def test_a_filter_without_counts_reads_its_matches_once(
    service: AuditService, shape: str
) -> None:
    asked = UNCOUNTED[shape]
    service.sources.primary.pager = Pager()
    first = await service.reading.list_tasks(AuditQuery.model_validate({**asked, "limit": 10}))
    total = first.total or 0

    for page in ({"offset": 0}, {"offset": total // 2}, {"offset": total + 1000}):
        query = AuditQuery.model_validate({**asked, **page, "limit": 10})
        assert ["list_tasks"] == await names_of(service, query)
        await hold_to_bounds(service, query, most_rows(shape))
    if first.next_cursor is not None:
        query = AuditQuery.model_validate({**asked, "cursor": first.next_cursor})
        assert ["list_tasks"] == await names_of(service, query)
        await hold_to_bounds(service, query, most_rows(shape))


async def test_containment_is_served_by_the_gin_index(service: AuditService) -> None:
    query = AuditQuery.model_validate({"service": "tax-loader", "status": "completed"})

    plan = await plan_of(service, query)

    conditions = [node["Index Cond"] for node in plan if "services" in node.get("Index Name", "")]
    assert conditions
    assert all("services_touched @>" in condition for condition in conditions)


async def test_statements_are_planned_for_their_values_each_time(service: AuditService) -> None:
    for _ in range(12):
        await service.audit_query(service="tax-loader")

    plans = await service.database.pool.fetch(
        "SELECT generic_plans FROM pg_prepared_statements WHERE statement LIKE '-- list_tasks%'"
    )
    assert [0] == [row["generic_plans"] for row in plans]
