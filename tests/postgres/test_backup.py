"""A backup, restored as docs/operations.md says, is the same history under the same guards."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from audit.history.service import AuditService
from audit.postgres import embedded
from audit.postgres.pool import open_pool
from audit.settings import Settings
from tests.conftest import FAST, POSTGRES, SERVING, ago, execute, of_database, task
from tests.processes import AUDIT

PAGE = (Path(__file__).parents[2] / "docs/operations.md").read_text()

USE_TRANSACTION_IDS = (
    "DO $$ BEGIN FOR n IN 1..3000 LOOP COMMIT; PERFORM pg_current_xact_id(); END LOOP; END $$"
)
LAST_TRANSACTION_ID = "SELECT pg_current_xact_id()::text::bigint"
IS_BOUNDED = "SELECT first_xid > '0' FROM read_task_queue_bounds()"


@pytest.fixture
def other_server(tmp_path: Path) -> Iterator[str]:
    """The DSN of a server that has seen few transactions yet."""
    with embedded.running(tmp_path / "other", bin_dir=POSTGRES, options=FAST) as address:
        yield address


async def restore(dsn: str, restored: str, folder: Path) -> str:
    """Run the commands of the page; return what they printed."""
    (commands,) = re.findall(r"```sh\n(pg_dump.*?)```", PAGE, re.DOTALL)
    binaries = POSTGRES or embedded.binaries()
    done = await asyncio.to_thread(
        subprocess.run,
        ["sh", "-ec", re.sub("createdb .*", "", commands)],
        env={
            **os.environ,
            "PATH": f"{folder}:{binaries}:{AUDIT.parent}:{os.environ['PATH']}",
            "AUDIT_DSN": dsn,
            "AUDIT_RESTORED": restored,
        },
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


async def test_a_dump_restores_the_history_its_counts_and_its_guards(
    service: AuditService, dsn: str, postgres: str, tmp_path: Path
) -> None:
    tasks = [
        task(
            status="failed" if n % 3 else "pending",
            created_at=ago(days=n),
            services_touched=["a", "b"][: n % 3],
        )
        for n in range(300)
    ]
    await service.record(tasks[:200])
    await service.upkeep.fold_counts()
    await service.record(tasks[200:])
    before = await service.audit_query(limit=1000)
    restored = of_database(postgres, "audit_restored")
    execute(postgres, "CREATE DATABASE audit_restored")

    printed = await restore(dsn, restored, tmp_path)

    assert "all counts are exact" in printed
    assert "no" not in printed.split("applied")[1].split()
    async with open_pool(Settings(pool_size=2), restored) as pool:
        again = AuditService(pool)
        after = await again.audit_query(limit=1000)
        assert (before.tasks, before.total) == (after.tasks, after.total)
        assert (await again.record(tasks)).duplicates == 300
        assert (await again.record([task()])).recorded == 1
    for attack in (
        "DELETE FROM tasks",
        "UPDATE tasks SET error_message = 'x' WHERE status = 'failed'",
    ):
        with pytest.raises(psycopg.DatabaseError) as refused:
            execute(restored, attack)
        assert str(refused.value.sqlstate).startswith("TA")
    execute(postgres, "DROP DATABASE audit_restored WITH (FORCE)")


async def test_counts_stay_exact_in_a_server_whose_transaction_ids_are_lower(
    service: AuditService, dsn: str, other_server: str, tmp_path: Path
) -> None:
    def some(first: int) -> list[dict[str, Any]]:
        return [
            task(
                created_by="ada",
                status="failed" if n % 3 else "pending",
                created_at=ago(days=n, hours=1),
            )
            for n in range(first, first + 40)
        ]

    execute(dsn, USE_TRANSACTION_IDS)
    await service.record(some(0))
    await service.upkeep.fold_counts()
    restored = of_database(other_server, "audit_restored")
    execute(other_server, f"CREATE ROLE {SERVING}", "CREATE DATABASE audit_restored")

    await restore(dsn, restored, tmp_path)

    assert execute(restored, LAST_TRANSACTION_ID) < execute(dsn, LAST_TRANSACTION_ID)
    asked: list[dict[str, Any]] = [
        {"created_by": "ada"}, {"created_by": "ada", "status": "failed"}, {"status": "pending"},
        {"created_by": "ada", "days": 30},
    ]  # fmt: skip
    async with open_pool(Settings(pool_size=2), restored) as pool:
        again = AuditService(pool)
        for first in (0, 5, 20):
            for one in asked:
                await again.audit_query(**one)
            await again.record(some(first))
            await again.upkeep.fold_counts()
            for one in asked:
                page = await again.audit_query(**one, limit=1000)
                anew = await AuditService(pool).audit_query(**one, limit=1000)
                assert (anew.total, anew.total) == (page.total, len(page.tasks))
        assert await again.upkeep.check_counts() == []


async def test_events_are_sequenced_in_a_server_whose_transaction_ids_are_lower(
    service: AuditService, dsn: str, other_server: str, tmp_path: Path
) -> None:
    restored = of_database(other_server, "audit_restored")
    execute(other_server, f"CREATE ROLE {SERVING}", "CREATE DATABASE audit_restored")
    execute(dsn, USE_TRANSACTION_IDS)
    changed = task(status="pending")
    await service.record([task()])
    await service.upkeep.sequence_events()
    assert execute(dsn, IS_BOUNDED) == [(True,)]
    await service.record([changed])
    for _ in range(24):
        await service.record([task()])

    await restore(dsn, restored, tmp_path)

    assert execute(restored, LAST_TRANSACTION_ID) < execute(dsn, LAST_TRANSACTION_ID)
    # The bounds are transaction ids of the other server.
    assert execute(restored, IS_BOUNDED) == [(False,)]
    events = 26
    async with open_pool(Settings(pool_size=2), restored) as pool:
        again = AuditService(pool)
        await again.update(changed["task_id"], {"status": "completed"})
        events += 1
        while not execute(restored, "SELECT is_last FROM sequence_task_events(10)")[0][0]:
            await again.record([task()])
            events += 1
            assert execute(restored, "SELECT task_event_count()") == [(events,)]
        assert execute(restored, IS_BOUNDED) == [(True,)]
        await again.record([task()])
        assert execute(restored, "SELECT task_event_count()") == [(events + 1,)]
        await again.upkeep.sequence_events()
    log = execute(restored, "SELECT count(*), max(position) + 1 FROM task_events")
    assert log == [(events + 1, events + 1)]
    order = execute(
        restored,
        "SELECT array_agg(status::text ORDER BY position) FROM task_events"
        f" WHERE task_id = '{changed['task_id']}'",
    )
    assert order == [(["pending", "completed"],)]
