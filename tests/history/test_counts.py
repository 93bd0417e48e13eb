"""The counts are exact: whoever writes, whatever is folded, whatever is killed."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from audit.history.query import AuditQuery
from audit.history.service import AuditService
from audit.postgres.pool import open_pool
from audit.settings import Settings
from tests.conftest import ago, execute, task
from tests.history.conftest import SPLIT_ABOVE
from tests.plans import names_of

STATES = ("pending", "approved", "executing", "completed", "failed", "rejected")


def some(n: int, **members: Any) -> list[dict[str, Any]]:
    rng = random.Random(n)
    return [
        task(
            status=rng.choice(STATES),
            services_touched=rng.sample(["a", "b", "c", "d"], rng.randrange(4)),
            outcome=rng.choice([None, {"action_type": "x"}, {"action_type": "y"}]),
            created_at=ago(hours=rng.randrange(1, 2000)),
            **members,
        )
        for _ in range(n)
    ]


@pytest.fixture
def dsn(dsn: str) -> Any:
    """With buckets that are split early."""
    execute(dsn, SPLIT_ABOVE.format(10))
    yield dsn
    execute(dsn, SPLIT_ABOVE.format(500))


QUESTIONS: list[dict[str, Any]] = [
    {},
    {"service": "a"},
    {"status": "failed"},
    {"intent": "x", "service": "b"},
    {"status": ["failed", "pending"], "intent": "y"},
    {"days": 30},
    {"service": "c", "days": 7},
    {"since": ago(days=50), "until": ago(days=3)},
]


async def totals(service: AuditService) -> list[int]:
    """The totals of the questions, by the counts."""
    return [await service.get_task_count(**asked) for asked in QUESTIONS]


async def by_rows(service: AuditService) -> list[int]:
    """The same, counted from the rows: a filter that all pass keeps the counts out of it."""
    unknowing = AuditService(service.database.pool)
    return [await unknowing.get_task_count(**asked, created_by="ada") for asked in QUESTIONS]


async def test_totals_are_the_same_before_and_after_a_fold(service: AuditService) -> None:
    await service.record(some(400, created_by="ada"))
    expected = await by_rows(service)

    assert expected == await totals(service)
    assert await service.upkeep.fold_counts() == 400
    assert expected == await totals(service)
    assert await service.upkeep.fold_counts() == 0
    assert await service.upkeep.check_counts() == []


async def test_changes_of_state_services_and_intent_are_counted(service: AuditService) -> None:
    tasks = some(60, created_by="ada")
    done = await service.record(tasks)
    await service.upkeep.fold_counts()
    for sent, task_id in zip(tasks, done.task_ids, strict=True):
        if sent["status"] in ("pending", "approved"):
            await service.update(
                task_id,
                {
                    "status": "executing",
                    "services_touched": ["d", "a"],
                    "outcome": {"action_type": "y"},
                },
            )

    assert await by_rows(service) == await totals(service)
    await service.upkeep.fold_counts()
    assert await by_rows(service) == await totals(service)
    assert await service.upkeep.check_counts() == []


async def test_changes_that_are_rolled_back_are_not_counted(
    service: AuditService, dsn: str
) -> None:
    with psycopg.connect(dsn) as connection:
        connection.execute(
            "INSERT INTO tasks (task_id, request_text) VALUES (gen_random_uuid(), 'x')"
        )
        connection.rollback()

    assert await service.get_task_count() == 0
    assert execute(dsn, "SELECT count(*) FROM task_count_deltas") == [(0,)]


async def test_plain_sql_and_copy_are_counted(service: AuditService, dsn: str) -> None:
    execute(
        dsn,
        "INSERT INTO tasks (task_id, request_text, services_touched)"
        " SELECT gen_random_uuid(), 'x', ARRAY['a', 'a'] FROM generate_series(1, 7)",
        "UPDATE tasks SET status = 'failed'",
    )
    with (
        psycopg.connect(dsn) as connection,
        connection.cursor() as cursor,
        cursor.copy("COPY tasks (task_id, request_text, status) FROM STDIN") as copying,
    ):
        for n in range(5):
            copying.write_row((f"00000000-0000-0000-0000-00000000000{n}", "x", "failed"))

    assert await service.get_task_count(status="failed") == 12
    assert await service.get_task_count(service="a") == 7
    await service.upkeep.fold_counts()
    assert await service.upkeep.check_counts() == []


async def test_a_full_bucket_is_split_and_stays_exact(service: AuditService, dsn: str) -> None:
    at = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
    await service.record([task(created_at=at + timedelta(microseconds=n)) for n in range(50)])
    await service.record([task(created_at=at + timedelta(days=n)) for n in range(1, 30)])
    await service.upkeep.fold_counts()
    await service.record([task(created_at=at - timedelta(minutes=n)) for n in range(1, 30)])
    await service.upkeep.fold_counts()

    grains = {grain for (grain,) in execute(dsn, "SELECT grain::text FROM task_count_splits")}
    assert grains == {"month", "day", "hour", "minute"}
    assert await service.upkeep.check_counts() == []
    since = at + timedelta(microseconds=20)
    assert await service.get_task_count(since=since.isoformat()) == 59


async def test_page_is_found_by_the_counts_while_its_tasks_are_not_folded(
    service: AuditService,
) -> None:
    at = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
    old = [task(created_at=at - timedelta(minutes=n), status="pending") for n in range(60)]
    await service.record(old)
    await service.upkeep.fold_counts()
    new = [task(created_at=at + timedelta(days=2, minutes=n)) for n in range(30)]
    await service.record(new)
    for one in old[:20]:
        await service.update(one["task_id"], {"status": "executing"})
    newest_first = [one["task_id"] for one in [*reversed(new), *old]]

    for asked, expected in (
        ({}, newest_first),
        ({"status": "pending"}, [one["task_id"] for one in old[20:]]),
        ({"status": "executing"}, [one["task_id"] for one in old[:20]]),
    ):
        for offset in (0, 10, 25, 45, 85):
            query = AuditQuery.model_validate({**asked, "offset": offset, "limit": 10})
            page = await service.reading.list_tasks(query)
            assert expected[offset : offset + 10] == [str(one.task_id) for one in page.tasks]
            assert page.total == len(expected)
            assert await names_of(service, query) == ["list_tasks"]


async def test_check_names_every_difference_and_rebuild_repairs(
    service: AuditService, dsn: str
) -> None:
    await service.record(some(120))
    await service.upkeep.fold_counts()
    await service.record(some(30))
    execute(
        dsn,
        "UPDATE task_count_base SET n = n + 3 WHERE service = '' AND grain = 'year'"
        " AND status = 'failed' AND intent = 'x'",
        "DELETE FROM task_count_base"
        " WHERE service = 'a' AND grain = 'month' AND status = 'pending'",
    )

    differences = await service.upkeep.check_counts()

    assert {(one["service"], one["grain"]) for one in differences} == {("", "year"), ("a", "month")}
    assert all(one["counted"] == one["expected"] + 3 for one in differences if one["service"] == "")
    assert await service.upkeep.rebuild_counts() == 150
    assert await service.upkeep.check_counts() == []


OF_30_DAYS = "created_at > date_trunc('second', now()) - interval '30 days'"
#: Questions, and the same as plain SQL: by counts, by counts with edges, by tallies.
TRUTHS: list[tuple[dict[str, Any], str]] = [
    ({}, "TRUE"),
    ({"service": "a"}, "'a' = ANY (services_touched)"),
    ({"status": "failed", "service": "b"}, "status = 'failed' AND 'b' = ANY (services_touched)"),
    (
        {"intent": "x", "days": 30},
        f"outcome ->> 'action_type' = 'x' AND {OF_30_DAYS}",
    ),
    (
        {"service": ["a", "b"], "created_by": "ada"},
        "'a' = ANY (services_touched) AND 'b' = ANY (services_touched) AND created_by = 'ada'",
    ),
    (
        {"created_by": "ada", "status": ["executing", "failed"]},
        "created_by = 'ada' AND status IN ('executing', 'failed')",
    ),
    (
        {"outcome": '{"action_type":"y"}', "days": 30},
        f"outcome ->> 'action_type' = 'y' AND {OF_30_DAYS}",
    ),
]


async def test_eight_writers_never_wait_and_every_answer_is_exact(
    service: AuditService, dsn: str
) -> None:
    """Batches, single tasks and changes, with folds and a rebuild between; readers check."""
    stop = time.monotonic() + 6
    written = 0

    async def write(number: int) -> None:
        nonlocal written
        rng = random.Random(number)
        async with open_pool(Settings(pool_size=1), dsn) as pool:
            writer = AuditService(pool)
            while time.monotonic() < stop:
                tasks = some(rng.choice((1, 7, 40)), created_by="ada")
                for one in tasks:
                    one["task_id"] = None
                    one["status"] = "pending"
                tasks = [{k: v for k, v in one.items() if v is not None} for one in tasks]
                done = await writer.record(tasks)
                written += done.recorded
                await writer.update(done.task_ids[0], {"status": rng.choice(STATES[1:])})

    async def fold() -> None:
        while time.monotonic() < stop:
            await service.upkeep.fold_counts()
            await asyncio.sleep(0.05)

    async def check() -> None:
        while time.monotonic() < stop:
            assert await service.upkeep.check_counts() == []
            await asyncio.sleep(0.1)

    async def read(number: int) -> None:
        """Pages and totals equal what plain SQL finds in the same snapshot."""
        rng = random.Random(number)
        async with open_pool(Settings(pool_size=1), dsn) as pool, pool.acquire() as connection:
            reader = AuditService(_One(connection))  # type: ignore[arg-type]
            while time.monotonic() < stop:
                asked, condition = rng.choice(TRUTHS)
                offset, limit = rng.choice((0, 0, 9, 150)), rng.choice((5, 40))
                async with connection.transaction(isolation="repeatable_read", readonly=True):
                    page = await reader.audit_query(**asked, offset=offset, limit=limit)
                    rows = await connection.fetch(
                        f"SELECT task_id FROM tasks WHERE {condition}"
                        " ORDER BY created_at DESC, task_id DESC"
                    )
                every = [row["task_id"] for row in rows]
                found = [one.task_id for one in page.tasks]
                assert (len(every), every[offset : offset + limit]) == (page.total, found)

    async def rebuild() -> None:
        await asyncio.sleep(2)
        await service.upkeep.rebuild_counts()

    await asyncio.gather(
        *(write(n) for n in range(8)), fold(), check(), *(read(n) for n in range(2)), rebuild()
    )

    assert await service.get_task_count() == written
    assert await by_rows(service) == await totals(service)
    while await service.upkeep.fold_counts():
        pass
    assert await service.upkeep.check_counts() == []
    assert await by_rows(service) == await totals(service)


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"service": "a", "status": "completed"},
        {"until": "2026-03-05T00:00:00.5Z"},
        {"created_by": "ada"},
        {"service": ["a", "b"], "since": "2026-03-01T12:00:00Z"},
    ],
    ids=str,
)
async def test_page_and_total_are_of_one_snapshot_while_others_write(
    service: AuditService, asked: dict[str, Any]
) -> None:
    """Each transaction records the next newer task, so a total says which tasks are on its page."""
    stop = time.monotonic() + 2
    first = datetime(2026, 3, 2, tzinfo=UTC)
    pages: list[tuple[int, int | None, list[str]]] = []

    async def write() -> None:
        number = 0
        while time.monotonic() < stop:
            number += 1
            await service.record(
                [
                    task(
                        request_text=str(number),
                        created_by="ada",
                        services_touched=["a", "b"],
                        created_at=first + timedelta(seconds=20 * number),
                    )
                ]
            )

    async def fold() -> None:
        while time.monotonic() < stop:
            await service.upkeep.fold_counts()
            await asyncio.sleep(0.2)

    async def read(offset: int) -> None:
        while time.monotonic() < stop:
            page = await service.audit_query(**asked, offset=offset, limit=5)
            pages.append((offset, page.total, [one.request_text for one in page.tasks]))

    await asyncio.gather(write(), fold(), *(read(offset) for offset in (0, 3, 40)))

    assert len(pages) > 50
    for offset, total, numbers in pages:
        newest = (total or 0) - offset
        assert numbers == [str(number) for number in range(newest, max(0, newest - 5), -1)]


class _One:
    """A pool of one connection, which stays acquired."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def get_max_size(self) -> int:
        return 1

    async def acquire(self) -> Any:
        return self._connection

    async def release(self, connection: Any, **_: float) -> None:
        pass


def test_a_fold_killed_at_any_point_loses_nothing(dsn: str) -> None:
    fold = (
        "import asyncio, sys\n"
        "from audit import AuditService, Settings, open_pool\n"
        "async def main():\n"
        "    async with open_pool(Settings(pool_size=1), sys.argv[1]) as pool:\n"
        "        print(await AuditService(pool).upkeep.fold_counts())\n"
        "asyncio.run(main())\n"
    )

    async def record() -> None:
        from audit import Settings, open_pool

        async with open_pool(Settings(pool_size=1), dsn) as pool:
            await AuditService(pool).record(some(1000))

    async def check() -> tuple[list[Any], int]:
        from audit import Settings, open_pool

        async with open_pool(Settings(pool_size=1), dsn) as pool:
            service = AuditService(pool)
            return await service.upkeep.check_counts(), await service.get_task_count()

    for turn, delay in enumerate((0.3, 0.5, 0.6, 0.7, 0.9), 1):
        asyncio.run(record())
        process = subprocess.Popen([sys.executable, "-c", fold, dsn], stdout=subprocess.DEVNULL)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()

        assert asyncio.run(check()) == ([], turn * 1000)


async def test_counts_ignore_the_time_zone_of_the_session(service: AuditService, dsn: str) -> None:
    execute(
        dsn,
        "SET timezone = 'Asia/Kolkata'",
        "INSERT INTO tasks (task_id, request_text, created_at)"
        " SELECT gen_random_uuid(), 'x', now() - n * interval '7 hours'"
        " FROM generate_series(1, 99) AS n",
        "SELECT sequence_task_events(1000)",
        "SELECT fold_task_counts(1000)",
    )

    assert await service.upkeep.check_counts() == []
    assert await service.get_task_count(days=2) == 6
