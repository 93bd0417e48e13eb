"""Which tasks a histogram reads, if the counts know its filter, and by how many statements (S9)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
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


async def test_one_statement_reads_what_the_edges_of_many_bars_cut(fresh: str) -> None:
    execute(fresh, SPLIT_ABOVE.format(20))
    async with open_pool(Settings(pool_size=1), fresh) as pool:
        service = AuditService(pool)
        # Days are split, hours are not.
        await service.record(
            [task(created_at=START + n * timedelta(minutes=6)) for n in range(20 * 240)]
        )
        await service.upkeep.fold_counts()
        # Midnight in Kathmandu is at 18:15 in UTC. These tasks are not in the counts yet.
        midnights = [START + timedelta(days=n, hours=18, minutes=15) for n in range(20)]
        moments = [at + minutes * timedelta(minutes=1) for at in midnights for minutes in (-9, 0)]
        await service.record(
            [task(created_at=at, services_touched=["payments", "orders"]) for at in moments]
        )
        ran: list[str] = []

        async with pool.acquire() as connection:
            connection.add_query_logger(lambda sent: ran.append(sent.query))
        for service_name in (None, "payments"):
            histogram = await service.get_histogram(
                service=service_name, interval="1d", tz="Asia/Kathmandu"
            )

            assert [bucket.total for bucket in histogram.buckets] == [
                # One task each six minutes, and the two of the list above.
                184, *[242] * 19, 58,
            ]  # fmt: skip
            assert [bucket.start for bucket in histogram.buckets][1:] == midnights
            assert all(one.end == two.start for one, two in pairwise(histogram.buckets))
        assert ran.count(statements.COUNT_SPANS.text) == 2
        assert statements.COUNT_ROWS.text not in ran

        orders = await service.get_histogram(service="orders", interval="1d", tz="Asia/Kathmandu")
        # So few tasks are read at once.
        assert orders.total == len(moments)
        assert ran.count(statements.COUNT_SPANS.text) == 2
        assert ran.count(statements.COUNT_ROWS.text) == 1
