"""Which tasks a histogram reads, if the counts know its filter (S9)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from asyncpg.connection import LoggedQuery

from audit.history.service import AuditService
from audit.postgres import statements
from audit.postgres.pool import open_pool
from audit.settings import Settings
from tests.conftest import execute, task
from tests.history.conftest import SPLIT_ABOVE
from tests.plans import explained

START = datetime(2026, 3, 1, tzinfo=UTC)


async def test_only_the_partition_of_a_cut_bucket_is_read(fresh: str) -> None:
    execute(fresh, SPLIT_ABOVE.format(20))
    async with open_pool(Settings(pool_size=1), fresh) as pool:
        service = AuditService(pool)
        await service.record(
            [task(created_at=START + n * timedelta(hours=1), status="failed") for n in range(3000)]
        )
        await service.upkeep.fold_counts()
        read: list[Any] = []

        def note(sent: LoggedQuery) -> None:
            if sent.query == statements.COUNT_ROWS.text:
                read.append(sent.args)

        async with pool.acquire() as connection:
            connection.add_query_logger(note)
        until = START + timedelta(days=100)

        whole = await service.get_histogram("failed", since=START, until=until, interval="1d")
        assert [] == read
        cut = await service.get_histogram(
            "failed", since=START + timedelta(minutes=1), until=until, interval="1w"
        )

        assert (2400, 2399) == (whole.total, cut.total)
        (values,) = read
        plan = await explained(service, statements.COUNT_ROWS, values)
        partitions = {node["Relation Name"] for node in plan if "Relation Name" in node}
        assert 1 == len(partitions)
