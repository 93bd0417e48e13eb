"""The service and its commands as each database role."""

from __future__ import annotations

import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from audit.history.service import AuditService
from audit.postgres.failures import NotGranted
from audit.postgres.pool import open_pool
from audit.settings import Settings
from audit.web.app import create_app
from tests.commandline import audit
from tests.conftest import Client, ago, execute, task
from tests.security.roles import OPEN_ID, OWNER, READING, ROLES, SERVING

API = "/api/v1/audit"

Connect = Callable[[str], Awaitable[Client]]


@pytest.fixture
def connect(
    history: dict[str, str], aiohttp_client: Callable[..., Awaitable[Client]]
) -> Callable[[str], Awaitable[Client]]:
    """Run the whole service in a role; return its client."""

    async def start(role: str) -> Client:
        return await aiohttp_client(create_app(Settings(pool_size=3), history[role]))

    return start


@pytest.fixture
async def services(history: dict[str, str]) -> AsyncIterator[dict[str, AuditService]]:
    async with (
        open_pool(Settings(pool_size=1), history[OWNER]) as owner,
        open_pool(Settings(pool_size=1), history[SERVING]) as serving,
        open_pool(Settings(pool_size=1), history[READING]) as reading,
    ):
        yield {
            role: AuditService(pool)
            for role, pool in zip(ROLES, (owner, serving, reading), strict=True)
        }


async def answer(client: Client, path: str, **parameters: Any) -> dict[str, Any]:
    response = await client.get(path, params=parameters)
    body: dict[str, Any] = await response.json()
    assert response.status == 200, body
    return body


async def test_the_whole_service_runs_as_the_role_that_serves(
    connect: Connect, history: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    client = await connect(SERVING)
    name, person, project = f"s-{uuid.uuid4()}", f"p-{uuid.uuid4()}", str(uuid.uuid4())
    started = task(
        status="pending", services_touched=[name], created_by=person, project_id=project,
        outcome=None,
    )  # fmt: skip
    old = task(
        status="failed", services_touched=[name], created_at=datetime(2013, 5, 5, tzinfo=UTC)
    )

    for expected in (201, 200):
        sent = await client.post(f"{API}/tasks", json=[started, old])
        assert expected == sent.status, await sent.text()
    changed = await client.patch(
        f"{API}/tasks/{started['task_id']}",
        json={"status": "failed", "outcome": {"action_type": "x"}, "error_message": "y"},
    )
    assert changed.status == 200, await changed.text()
    again = await client.patch(f"{API}/tasks/{started['task_id']}", json={"status": "completed"})
    assert again.status == 409

    assert (await answer(client, "/readyz"))["status"] == "ready"
    assert (await answer(client, f"{API}/tasks/{old['task_id']}"))["status"] == "failed"
    for path, parameters, total in (
        ("failures", {"service": name}, 1),
        (f"by-service/{name}", {}, 2),
        ("query", {"service": name, "status": "failed", "intent": "x", "days": "30"}, 1),
        ("query", {"created_by": person}, 1),
        ("query", {"project_id": project, "outcome": '{"action_type":"x"}'}, 1),
        ("query", {"service": name, "until": "2014-01-01T00:00:00Z", "limit": "1"}, 1),
        ("query", {"service": name, "limit": "1", "offset": "1"}, 2),
    ):
        assert total == (await answer(client, f"{API}/{path}", **parameters))["total"], path
    first = await answer(client, f"{API}/by-service/{name}", limit=1)
    second = await answer(client, f"{API}/by-service/{name}", limit=1, cursor=first["next_cursor"])
    assert [started["task_id"], old["task_id"]] == [
        page["tasks"][0]["task_id"] for page in (first, second)
    ]
    assert [] == [record.getMessage() for record in caplog.records]


async def test_the_role_that_serves_folds_and_makes_partitions(
    services: dict[str, AuditService], history: dict[str, str]
) -> None:
    serving = services[SERVING]
    await serving.partitions.make_coming()
    await serving.record([task(), task(created_at=ago(days=1500))])

    while await serving.upkeep.fold_counts():
        pass

    assert [(0,)] == execute(history[OWNER], "SELECT count(*) FROM task_count_deltas")
    for role in ROLES:
        assert [] == await services[role].upkeep.check_counts()


async def test_the_role_that_reads_reads(
    services: dict[str, AuditService], connect: Connect
) -> None:
    name = f"s-{uuid.uuid4()}"
    ours = task(services_touched=[name], status="failed", created_by=name)
    await services[SERVING].record([ours])
    reading = services[READING]

    pages = [
        await reading.get_failures(service=name),
        await reading.get_by_service(name),
        await reading.audit_query(created_by=name, days=3),
    ]
    assert [1, 1, 1] == [page.total for page in pages]
    assert await reading.get_task_count(service=name) == 1
    assert (await reading.get_task(ours["task_id"])).task.request_text == ours["request_text"]

    client = await connect(READING)
    assert (await answer(client, "/readyz"))["status"] == "ready"
    assert (await answer(client, f"{API}/failures", service=name))["total"] == 1
    assert (await answer(client, f"{API}/query", created_by=name))["total"] == 1


async def test_the_role_that_reads_exports_without_a_manifest(
    services: dict[str, AuditService], connect: Connect, history: dict[str, str]
) -> None:
    name = f"s-{uuid.uuid4()}"
    await services[SERVING].record([task(created_by=name)])
    number = "SELECT count(*) FROM exports"
    before = execute(history[OWNER], number)
    client = await connect(READING)
    for form in ("ndjson", "csv"):
        response = await client.get(
            f"{API}/export", params={"created_by": name, "format": form, "columns": "task_id"}
            if form == "csv" else {"created_by": name},
        )  # fmt: skip
        assert response.status == 200
        assert (await response.read()).count(b"\n") == (2 if form == "csv" else 1)
        assert "X-Export-ID" not in response.headers
        assert response.headers["X-Total"] == "1"
    assert execute(history[OWNER], number) == before


async def test_recording_as_the_role_that_reads_gets_503(
    services: dict[str, AuditService], connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    for change in (
        services[READING].record([task()]),
        services[READING].update(uuid.UUID(OPEN_ID), {"status": "failed"}),
        services[READING].upkeep.fold_counts(),
        services[READING].partitions.make_coming(),
        services[READING].upkeep.rebuild_counts(),
        services[SERVING].upkeep.rebuild_counts(),
    ):
        with pytest.raises(NotGranted):
            await change

    caplog.set_level(logging.WARNING)
    client = await connect(READING)
    answers = [
        await client.post(f"{API}/tasks", json=task()),
        await client.post(f"{API}/tasks", json=task(created_at="2014-01-01T00:00:00Z")),
        await client.patch(f"{API}/tasks/{OPEN_ID}", json={"status": "failed"}),
    ]
    for one in answers:
        problem = await one.json()
        assert (503, "10") == (one.status, one.headers["Retry-After"])
        assert "application/problem+json" == one.content_type
        assert problem["detail"].startswith("the role of the service in the database may not do")
    assert {logging.WARNING} == {record.levelno for record in caplog.records}
    assert 1 == sum("counting the events" in record.getMessage() for record in caplog.records)


def test_all_roles_check_the_counts_and_only_the_owner_rebuilds_them(
    history: dict[str, str],
) -> None:
    for role in ROLES:
        assert (0, "all counts are exact\n", "") == audit(
            "counts", "--check", "--dsn", history[role]
        )
    for role in (SERVING, READING):
        code, out, err = audit("counts", "--rebuild", "--dsn", history[role])
        assert (69, "") == (code, out)
        assert "permission denied for function rebuild_task_counts" in err
        assert len(err.splitlines()) == 1
    code, out, err = audit("counts", "--rebuild", "--dsn", history[OWNER])
    assert (0, "") == (code, err)
    assert out.startswith("counted ")
