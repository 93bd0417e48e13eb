"""The questions of the service, asked in Python, of a real database."""

from __future__ import annotations

from typing import Any

import pytest

from audit.errors import Invalid
from audit.history.query import AuditQuery
from audit.history.service import AuditService
from audit.history.task import TaskPage
from tests.conftest import ago, task
from tests.plans import plan_of


def ids(*tasks: dict[str, Any]) -> list[str]:
    return [str(one["task_id"]) for one in tasks]


def shown(page: TaskPage) -> list[str]:
    return [str(one.task_id) for one in page.tasks]


async def test_get_failures_returns_failed_only(service: AuditService) -> None:
    failed = task(status="failed", error_message="no space left")
    others = [
        task(status=status)
        for status in ("pending", "approved", "executing", "completed", "rejected")
    ]
    await service.record([failed, *others])

    page = await service.get_failures()

    assert ids(failed) == shown(page)
    assert page.total == 1
    assert page.tasks[0].error_message == "no space left"


async def test_get_failures_respects_time_range(service: AuditService) -> None:
    recent = task(status="failed", created_at=ago(days=6.9))
    older = task(status="failed", created_at=ago(days=7.1))
    oldest = task(status="failed", created_at=ago(days=89))
    await service.record([oldest, older, recent])

    assert ids(recent) == shown(await service.get_failures())
    assert ids(recent, older) == shown(await service.get_failures(days=8))
    assert ids(recent, older, oldest) == shown(await service.get_failures(days=90))


async def test_get_failures_filters_by_service(service: AuditService) -> None:
    payments = task(status="failed", services_touched=["gateway", "payments"])
    search = task(status="failed", services_touched=["search"])
    await service.record([payments, search])

    assert ids(payments) == shown(await service.get_failures(service="payments"))
    assert [] == shown(await service.get_failures(service="pay"))


async def test_get_by_service_uses_gin_index(service: AuditService) -> None:
    crowd = [task(services_touched=[f"service-{n % 97}"]) for n in range(3000)]
    rare = task(services_touched=["service-1", "rare"])
    await service.record([*crowd, rare])
    await service.database.pool.execute("ANALYZE tasks")

    page = await service.get_by_service("rare")
    plan = await plan_of(service, AuditQuery.model_validate({"service": "rare"}))

    assert ids(rare) == shown(page)
    assert "services_touched @> '{rare}'" in conditions_of_bitmaps(plan)


def conditions_of_bitmaps(plan: list[dict[str, Any]]) -> str:
    return " ".join(
        node["Index Cond"]
        for node in plan
        if node["Node Type"] == "Bitmap Index Scan" and "services" in node["Index Name"]
    )


async def test_get_by_service_with_status_filter(service: AuditService) -> None:
    done = task(services_touched=["search"], status="completed")
    failed = task(services_touched=["search"], status="failed")
    elsewhere = task(services_touched=["media"], status="failed")
    await service.record([done, failed, elsewhere])

    assert ids(failed) == shown(await service.get_by_service("search", status="failed"))
    assert {*ids(done, failed)} == {*shown(await service.get_by_service("search"))}


async def test_get_by_service_with_time_filter(service: AuditService) -> None:
    recent = task(services_touched=["search"], created_at=ago(days=2))
    old = task(services_touched=["search"], created_at=ago(days=200))
    await service.record([recent, old])

    assert ids(recent) == shown(await service.get_by_service("search", days=3))
    assert ids(recent, old) == shown(await service.get_by_service("search"))


async def test_audit_query_combined_filters(service: AuditService) -> None:
    wanted = task(
        status="failed",
        services_touched=["search", "media"],
        outcome={"action_type": "rotate_secret"},
        created_at=ago(days=3),
    )
    near_misses = [
        {**wanted, "task_id": task()["task_id"], **other}
        for other in (
            {"status": "completed"},
            {"services_touched": ["media"]},
            {"outcome": {"action_type": "deploy_service"}},
            {"created_at": ago(days=31).isoformat()},
        )
    ]
    await service.record([wanted, *near_misses])

    page = await service.audit_query(
        status="failed", service="search", intent="rotate_secret", days=30
    )

    assert ids(wanted) == shown(page)
    assert page.total == 1


async def test_audit_query_intent_filter(service: AuditService) -> None:
    rotated = task(outcome={"action_type": "rotate_secret", "secret": "db"})
    deployed = task(outcome={"action_type": "deploy_service"})
    unknown = task(outcome=None)
    await service.record([rotated, deployed, unknown])

    assert ids(rotated) == shown(await service.audit_query(intent="rotate_secret"))
    assert await service.get_task_count(intent="rotate_secret") == 1


async def test_get_task_count_matches_results(service: AuditService) -> None:
    await service.record(
        [
            task(
                status=status,
                services_touched=[name],
                outcome={"action_type": intent},
                created_at=ago(days=days),
            )
            for status in ("completed", "failed")
            for name in ("search", "media")
            for intent in ("deploy_service", "rotate_secret")
            for days in (1, 20, 300)
        ]
    )

    for filters in (
        {},
        {"status": "failed"},
        {"service": "media"},
        {"intent": "rotate_secret"},
        {"days": 2},
        {"status": "failed", "service": "media", "intent": "rotate_secret", "days": 30},
    ):
        page = await service.audit_query(**filters, limit=1000)

        assert len(page.tasks) == page.total
        assert page.total == await service.get_task_count(**filters)


async def test_pagination_limit_offset(service: AuditService) -> None:
    history = [task(created_at=ago(minutes=n + 1)) for n in range(25)]
    await service.record(history)

    first = await service.audit_query(limit=10)
    second = await service.audit_query(limit=10, offset=10)
    third = await service.audit_query(limit=10, offset=20)
    beyond = await service.audit_query(limit=10, offset=30)

    assert ids(*history) == [*shown(first), *shown(second), *shown(third)]
    assert [25, 25, 25, 25] == [page.total for page in (first, second, third, beyond)]
    assert (10, 20) == (third.limit, third.offset)
    assert third.next_cursor is None
    assert [] == shown(beyond)


async def test_default_of_days_gives_way_to_since(service: AuditService) -> None:
    old = task(status="failed", created_at=ago(days=50))
    await service.record([old])

    assert ids(old) == shown(await service.get_failures(since=ago(days=60)))
    with pytest.raises(Invalid, match="not together"):
        await service.get_failures(days=30, since=ago(days=60))


async def test_values_out_of_bounds_are_named(service: AuditService) -> None:
    with pytest.raises(Invalid) as refused:
        await service.audit_query(status="done", days=0, limit=1001)

    assert {"status", "days", "limit"} == {
        error["field"].partition(".")[0] for error in refused.value.errors or []
    }
