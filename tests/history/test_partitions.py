"""Partitions are made in portions, up to a limit, and only those that are needed are locked."""

from __future__ import annotations

import asyncio
import subprocess
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from audit.errors import Invalid
from audit.history.service import AuditService
from audit.postgres import embedded, migrate
from audit.postgres.pool import open_pool
from audit.settings import Settings
from tests.commandline import ENVIRONMENT
from tests.conftest import FAST, POSTGRES, SERVING, _database, ago, as_role, execute, task
from tests.processes import AUDIT
from tests.waiting import until

PARTITIONS = "SELECT count(*) FROM task_partitions"


@pytest.fixture
def fresh(postgres: str, template: str) -> Iterator[str]:
    """A database of its own, with partitions around now only."""
    yield from _database(postgres, template)


@asynccontextmanager
async def serving(dsn: str, **settings: Any) -> AsyncIterator[AuditService]:
    given = Settings(pool_size=4, **settings)
    async with open_pool(given, as_role(dsn, SERVING)) as pool:
        yield AuditService(pool, given)


def count(dsn: str) -> int:
    [(partitions,)] = execute(dsn, PARTITIONS)
    return int(partitions)


async def test_a_batch_over_many_days_is_recorded_though_each_statement_has_little_time(
    fresh: str,
) -> None:
    """All partitions together would take longer than one statement may."""
    start = datetime(2015, 1, 1, tzinfo=UTC)
    tasks = [task(created_at=start + timedelta(days=n)) for n in range(300)]
    before = count(fresh)
    async with serving(fresh, partition="day", statement_timeout_seconds=2.5) as service:
        assert (await service.record(tasks)).recorded == 300

    assert count(fresh) == before + 300


async def test_partitions_made_by_a_request_that_timed_out_stay(fresh: str) -> None:
    start = datetime(2015, 1, 1, tzinfo=UTC)
    tasks = [task(created_at=start + timedelta(days=n)) for n in range(200)]
    before = count(fresh)
    async with serving(fresh, partition="day") as service:
        recording = asyncio.create_task(service.record(tasks))
        await until(lambda: count(fresh) > before)
        recording.cancel()
        await asyncio.gather(recording, return_exceptions=True)
        kept = count(fresh)
        assert before < kept < before + 200

        assert (await service.record(tasks)).recorded == 200

    assert count(fresh) == before + 200


async def test_requests_that_need_the_same_months_are_all_recorded(fresh: str) -> None:
    months = [
        datetime(year, month, 1, tzinfo=UTC) for year in range(2000, 2010) for month in range(1, 13)
    ]
    async with serving(fresh, queue_seconds=60) as service:
        done = await asyncio.gather(
            *(service.record([task(created_at=month) for month in months]) for _ in range(4))
        )

        assert [120] * 4 == [one.recorded for one in done]


async def test_more_partitions_than_the_limit_are_refused_by_its_name(fresh: str) -> None:
    limit = count(fresh) + 5
    async with serving(fresh, partition="day", max_partitions=limit) as service:
        days = [task(created_at=datetime(2015, 1, n, tzinfo=UTC)) for n in range(1, 8)]

        with pytest.raises(Invalid, match="max_partitions"):
            await service.record(days[:6])
        assert count(fresh) == limit - 5
        assert (await service.record(days[:5])).recorded == 5
        with pytest.raises(Invalid, match="max_partitions"):
            await service.record(days[6:])
        assert (await service.record([task(created_at=days[0]["created_at"])])).recorded == 1

    assert count(fresh) == limit


async def test_a_time_whose_partition_was_detached_gets_a_new_one(fresh: str) -> None:
    async with serving(fresh) as service:
        await service.record([task(created_at="2015-03-04T00:00:00Z")])
        execute(fresh, "ALTER TABLE tasks DETACH PARTITION tasks_20150301")

        assert (await service.record([task(created_at="2015-03-05T00:00:00Z")])).recorded == 1

    assert execute(fresh, "SELECT name FROM task_partitions WHERE since = '2015-03-01'") == [
        ("tasks_20150301_2",)
    ]


# --- many partitions ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with 300 partitions of a day, and room for the locks of a tenth of them."""
    few = {"max_locks_per_transaction": "10", "max_connections": "12", "max_worker_processes": "0"}
    with embedded.running(
        tmp_path_factory.mktemp("crowded"),
        bin_dir=POSTGRES,
        options={**FAST, **few},
    ) as dsn:
        execute(dsn, f"CREATE ROLE {SERVING} LOGIN")
        migrate.apply(dsn)
        migrate.grant(dsn, [SERVING], [])
        for first in range(-2, 300, 20):
            execute(
                dsn,
                "SELECT make_task_partitions(ARRAY("
                "SELECT now() - n * interval '1 day'"
                f" FROM generate_series({first}, {min(first + 19, 300)}) AS n), 'day')",
            )
        yield dsn


def test_the_test_server_cannot_lock_all_partitions_at_once(crowded: str) -> None:
    with pytest.raises(psycopg.errors.OutOfMemory):
        execute(crowded, "SELECT count(*) FROM tasks WHERE created_by = 'ada'")


async def test_tasks_are_recorded_whatever_the_number_of_partitions(crowded: str) -> None:
    async with serving(crowded, partition="day") as service:
        for made in (
            [task()],
            [task(created_at=ago(minutes=n)) for n in range(1000)],
            [task(created_at=ago(days=200)), task(created_at=ago(days=10))],
        ):
            assert len(made) == (await service.record(made)).recorded
        one = str(uuid.uuid4())
        await service.record([task(task_id=one, status="pending", created_at=ago(days=100))])
        await service.update(uuid.UUID(one), {"status": "failed"})
        assert (await service.get_task(uuid.UUID(one))).task.status == "failed"
        while await service.upkeep.fold_counts():
            pass


def test_a_key_without_a_task_is_refused_in_any_month(crowded: str) -> None:
    for age in ("0 days", "150 days"):
        with pytest.raises(psycopg.DatabaseError) as refused:
            execute(
                as_role(crowded, SERVING),
                "INSERT INTO task_keys (task_id, created_at)"
                f" VALUES (gen_random_uuid(), now() - interval '{age}')",
            )
        assert refused.value.sqlstate == "TA007"


async def test_tallied_lists_work_whatever_the_number_of_partitions(crowded: str) -> None:
    """With a total that is tallied anew, that is brought up to date, and of an old change."""
    async with serving(crowded, partition="day") as service:
        while await service.upkeep.fold_counts():
            pass
        asked: dict[str, Any] = {"created_by": "eve", "since": ago(days=60).isoformat()}
        for expected, age in ((20, 0), (40, 1), (60, 50)):
            await service.record(
                [task(created_by="eve", created_at=ago(days=age, seconds=n)) for n in range(20)]
            )
            page = await service.audit_query(**asked, limit=5)
            assert (expected, 5) == (page.total, len(page.tasks))
            await service.upkeep.fold_counts()
            assert await service.get_task_count(**asked) == expected


async def test_a_check_names_times_whose_partition_is_missing(fresh: str) -> None:
    async with serving(fresh) as service:
        await service.record(
            [task(created_at=f"2015-{month}T00:00:00Z") for month in ("02-03", "03-04", "04-05")]
        )
        assert await service.partitions.find_missing() == []
    execute(fresh, "ALTER TABLE tasks DETACH PARTITION tasks_20150301")

    done = await asyncio.to_thread(
        subprocess.run,
        [str(AUDIT), "counts", "--check", "--dsn", fresh],
        capture_output=True, text=True, check=False, env=ENVIRONMENT,
    )  # fmt: skip

    assert (
        "no partition holds 1 recorded tasks, created from 2015-03-01 and before 2015-04-01"
        in done.stderr
    )
    assert done.returncode == 65


async def test_too_few_locks_for_all_partitions_are_named(fresh: str, crowded: str) -> None:
    async with serving(fresh) as service:
        assert await service.partitions.lock_shortage() is None
    async with serving(crowded) as service:
        assert "raise its max_locks_per_transaction" in str(
            await service.partitions.lock_shortage()
        )
