"""What the statement of all lists reads, filter by filter: an index each, and little besides.

The total of a list is counted from its rows, so every shape may read its matches once for the total
and once more for the page; a page of a frequent filter may also walk the newest tasks until it is
full. It may not read the rest of the history.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from audit import statements
from audit.database import open_pool
from audit.demo import generate
from audit.models import AuditQuery
from audit.service import AuditService
from audit.settings import Settings
from tests.conftest import _database, task

TASKS = 30_000
UNTIL = datetime.now(UTC)
LIMIT = 100


@pytest.fixture(scope="module")
def history(postgres: str, template: str) -> Iterator[str]:
    yield from _database(postgres, template)


@pytest.fixture
async def service(history: str) -> AsyncIterator[AuditService]:
    async with open_pool(Settings(pool_size=1), history) as pool:
        service = AuditService(pool)
        if await service.get_task_count() == 0:
            made = list(generate(TASKS, days=365, until=UNTIL))
            retired = [
                task(services_touched=["retired"], created_at=UNTIL - timedelta(days=360, hours=n))
                for n in range(50)
            ]
            for place in range(0, TASKS, 5000):
                await service.record(made[place : place + 5000])
            await service.record(retired)
            await pool.execute("VACUUM ANALYZE tasks")
        yield service


async def plan_of(service: AuditService, query: AuditQuery, **further: Any) -> list[dict[str, Any]]:
    """The nodes of the plan with which the very statement of production was just run."""
    async with service._pool.acquire() as connection:
        text = await connection.fetchval(
            "EXPLAIN (ANALYZE, FORMAT JSON) " + statements.LIST_TASKS,
            *(query.statuses or None, query.service or None, query.intent or None, query.days),
            *(query.since, query.until, query.created_by, query.project_id, query.outcome),
            *(None, further.get("after_at"), further.get("after_id")),
            *(query.limit, query.offset or 0, further.get("total")),
        )
    nodes: list[dict[str, Any]] = []

    def walk(node: dict[str, Any]) -> None:
        nodes.append(node)
        for child in node.get("Plans", []):
            walk(child)

    walk(json.loads(text)[0]["Plan"])
    return nodes


def rows_read(plan: list[dict[str, Any]]) -> int:
    """The rows that scans of tables looked at, those that they passed over included."""
    return sum(
        int(node["Actual Loops"])
        * int(
            node["Actual Rows"]
            + node.get("Rows Removed by Filter", 0)
            + node.get("Rows Removed by Index Recheck", 0)
        )
        for node in plan
        if node["Node Type"] in ("Seq Scan", "Index Scan", "Index Only Scan", "Bitmap Heap Scan")
    )


#: Found by an index alone: a read may touch the matches, and one small partition whole.
SELECTIVE: dict[str, dict[str, Any]] = {
    "failures of a week": {"status": "failed", "days": 7},
    "rare service": {"service": "tax-loader"},
    "retired service": {"service": "retired"},
    "absent service": {"service": "nobody"},
    "state and service, a month": {"status": "failed", "service": "search", "days": 30},
    "and an intent": {"status": "failed", "service": "search", "intent": "rotate_secret"},
    "rare state and intent of a frequent service": {
        "service": "payments", "status": "rejected", "intent": "revoke_access"
    },
    "two states": {"status": ["failed", "rejected"], "days": 30},
    "intent": {"intent": "revoke_access"},
    "person": {"created_by": "ada@example.com", "days": 3},
    "project": {"project_id": "5eed0000-0000-4000-8000-000000000003", "days": 3},
    "outcome": {"outcome": '{"action_type":"revoke_access"}'},
    "no match": {"service": "retired", "days": 30},
    "window": {"since": UNTIL - timedelta(days=100), "until": UNTIL - timedelta(days=99)},
}  # fmt: skip
#: A page of these may also be found by walking the newest tasks.
FREQUENT: dict[str, dict[str, Any]] = {
    "frequent service": {"service": "payments"},
    "frequent service, a week": {"service": "payments", "days": 7},
    "two services": {"service": ["payments", "checkout"]},
}  # fmt: skip


@pytest.mark.parametrize("shape", SELECTIVE)
async def test_selective_filter_reads_its_matches_only(service: AuditService, shape: str) -> None:
    await read_at_most(service, SELECTIVE[shape], TASKS // 20)


@pytest.mark.parametrize("shape", FREQUENT)
async def test_frequent_filter_reads_little_beside_its_matches(
    service: AuditService, shape: str
) -> None:
    await read_at_most(service, FREQUENT[shape], TASKS // 4)


async def read_at_most(service: AuditService, asked: dict[str, Any], beside: int) -> None:
    query = AuditQuery.model_validate({**asked, "limit": LIMIT})
    total = (await service.list_tasks(query)).total

    plan = await plan_of(service, query)

    assert rows_read(plan) <= 2 * total + beside, json.dumps(plan, indent=1)


@pytest.mark.parametrize("service_name", ["tax-loader", "retired"])
async def test_containment_is_served_by_the_gin_index(
    service: AuditService, service_name: str
) -> None:
    query = AuditQuery.model_validate({"service": service_name, "status": "completed"})

    plan = await plan_of(service, query)

    conditions = [node["Index Cond"] for node in plan if "services" in node.get("Index Name", "")]
    assert conditions
    assert all("services_touched @>" in condition for condition in conditions)


async def test_a_page_deep_in_a_crawl_reads_little_more_than_itself(service: AuditService) -> None:
    deep = UNTIL - timedelta(days=200)
    query = AuditQuery(limit=LIMIT)

    plan = await plan_of(
        service, query, after_at=deep, after_id="00000000-0000-0000-0000-000000000000", total=TASKS
    )

    assert rows_read(plan) <= 2 * LIMIT, json.dumps(plan, indent=1)


async def test_a_statement_keeps_its_custom_plans(service: AuditService) -> None:
    for _ in range(12):
        await service.audit_query(service="tax-loader")

    plans = await service._pool.fetch(
        "SELECT generic_plans FROM pg_prepared_statements WHERE statement LIKE '-- list_tasks%'"
    )
    assert [0] == [row["generic_plans"] for row in plans]
