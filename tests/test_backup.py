"""A backup, restored as docs/operations.md says, is the same history under the same guards."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
from pathlib import Path

import psycopg
import pytest

from audit import embedded
from audit.database import open_pool
from audit.service import AuditService
from audit.settings import Settings
from tests.conftest import ago, execute, of_database, task
from tests.processes import AUDIT

PAGE = (Path(__file__).parent.parent / "docs/operations.md").read_text()


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
    await service.fold_counts()
    await service.record(tasks[200:])
    before = await service.audit_query(limit=1000)
    restored = of_database(postgres, "audit_restored")
    (commands,) = re.findall(r"```sh\n(pg_dump.*?)```", PAGE, re.DOTALL)
    execute(postgres, "CREATE DATABASE audit_restored")
    binaries = os.environ.get("AUDIT_TEST_POSTGRES") or str(embedded.binaries())

    done = await asyncio.to_thread(
        subprocess.run,
        ["sh", "-ec", re.sub("createdb .*", "", commands)],
        env={
            **os.environ,
            "PATH": f"{tmp_path}:{binaries}:{AUDIT.parent}:{os.environ['PATH']}",
            "AUDIT_DSN": dsn,
            "AUDIT_RESTORED": restored,
        },
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert "all counts are exact" in done.stdout
    assert "no" not in done.stdout.split("applied")[1].split()
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
