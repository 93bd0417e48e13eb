"""The service and the commands on a hot standby."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import psycopg
import pytest
from aiohttp import web

from audit.errors import ReadOnly
from audit.history.service import AuditService
from audit.postgres import migrate
from audit.postgres.schema import migrations_on_disk
from audit.settings import Settings
from audit.web.app import create_app
from audit.web.state import SERVICE
from tests.api import API, TASKS, metric
from tests.commandline import audit
from tests.conftest import Client, as_role, execute, task
from tests.processes import get, serving
from tests.replicas import Replicas, paused_replay
from tests.waiting import until, wait_until

PRIMARY_URL = "https://audit.example.com"
REFUSED = "the database server accepts no writes, because it is a standby or is set to read-only"
STATEMENTS = 'task_audit_statement_duration_seconds_count{{statement="{}"}}'
Clients = Callable[[web.Application], Awaitable[Client]]


@pytest.fixture
async def primary(replicas: Replicas, aiohttp_client: Clients) -> Client:
    return await aiohttp_client(create_app(Settings(pool_size=3), replicas.primary.dsn))


@pytest.fixture
async def standby(replicas: Replicas, aiohttp_client: Clients) -> Client:
    settings = Settings(pool_size=3, primary_url=PRIMARY_URL)
    return await aiohttp_client(create_app(settings, replicas.standby.dsn))


async def recorded(replicas: Replicas, primary: Client, *tasks: dict[str, Any]) -> None:
    """Record tasks on the primary, and wait until they are counted and on the standby."""
    async with primary.post(TASKS, json=list(tasks)) as answer:
        assert 201 == answer.status
    await primary.app[SERVICE].upkeep.fold_counts()
    await asyncio.to_thread(replicas.wait_for_standby)


async def test_a_standby_answers_what_the_primary_answers(
    replicas: Replicas, primary: Client, standby: Client
) -> None:
    new = task(status="failed", error_message="out of memory")
    await recorded(replicas, primary, task(), new, task(services_touched=["search"]))
    # A window that moves with the clock would differ between two requests.
    today = datetime.now(UTC).date()
    window = (
        f"since={today - timedelta(days=7)}T00:00:00Z&until={today + timedelta(days=2)}T00:00:00Z"
    )

    for path in (
        "failures?service=payments",
        "by-service/payments?status=completed",
        "query?status=completed&intent=deploy_service",
        "query?service=payments&service=search",
        "query?limit=2",
        f"tasks/{new['task_id']}",
        f"tasks/{new['task_id']}/history",
        f"statistics/histogram?{window}&interval=1d",
        f"statistics/facets?facet=service&{window}",
        f"statistics/durations?{window}",
        "changes?position=0&wait=0",
    ):
        there, here = [await one.get(f"{API}/{path}") for one in (primary, standby)]
        assert (path, 200, 200) == (path, there.status, here.status)
        assert (path, await there.json()) == (path, await here.json())


async def test_readiness_names_the_role_of_the_server(primary: Client, standby: Client) -> None:
    for client, role in ((primary, "primary"), (standby, "standby")):
        async with client.get("/readyz") as answer:
            assert 200 == answer.status
            assert {"status": "ready", "role": role} == await answer.json()


async def test_every_write_is_refused_with_the_url_of_the_primary(
    replicas: Replicas, primary: Client, standby: Client
) -> None:
    known = task(status="pending")
    await recorded(replicas, primary, known)
    path = f"{TASKS}/{known['task_id']}"
    # Those of a single task share a statement.
    sent = [
        *(standby.post(TASKS, json=task()) for _ in range(20)),
        *(standby.patch(path, json={"status": "approved"}) for _ in range(3)),
        standby.patch(path, json={"error_message": "x" * 20_000}),
        standby.post(TASKS, json=[task(), task()]),
        standby.post(TASKS, json=task(request_text="x" * 20_000)),
        standby.post(TASKS, json=task(created_at="2000-02-01T00:00:00Z")),
    ]
    for answer in await asyncio.gather(*sent):
        body = await answer.json()
        assert (503, "1") == (answer.status, answer.headers.get("Retry-After")), body
        assert "urn:task-audit:problem:read-only" == body["type"]
        assert PRIMARY_URL == body["primary_url"]
        assert (
            f"{REFUSED}; nothing is recorded; the service on the primary is {PRIMARY_URL}"
            == (body["detail"])
        )


async def test_without_a_setting_no_primary_is_named(
    replicas: Replicas, aiohttp_client: Clients
) -> None:
    client = await aiohttp_client(create_app(Settings(pool_size=2), replicas.standby.dsn))
    async with client.post(TASKS, json=task()) as answer:
        body = await answer.json()
    assert f"{REFUSED}; nothing is recorded" == body["detail"]
    assert "primary_url" not in body


@pytest.mark.parametrize("url", ["audit.example.com", "postgresql://db1/audit"])
def test_the_url_of_the_primary_must_be_one_of_http(url: str) -> None:
    given: dict[str, Any] = {"primary_url": url}
    with pytest.raises(ValueError, match="must be an http or https URL"):
        Settings(**given)


async def test_the_background_work_pauses_and_is_logged_once(
    replicas: Replicas, aiohttp_client: Clients, caplog: pytest.LogCaptureFixture
) -> None:
    app = create_app(Settings(pool_size=3, feed_seconds=0.05), replicas.standby.dsn)
    client = await aiohttp_client(app)

    def attempts() -> float:
        return metric(client, series.format("duration_seconds_count"))

    series = 'task_audit_statement_{}{{statement="sequence_events"}}'
    async with client.get(f"{API}/feed"):
        await until(lambda: attempts() >= 12)

    assert 0 == metric(client, series.format("failures_total"))
    logged = [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]
    assert 1 == len(logged)
    assert "accepts no writes, so this service only reads" in logged[0]
    await until(lambda: 1 > metric(client, "task_audit_count_deltas_lag_seconds"))


async def test_readers_of_the_feed_on_a_standby_get_each_change(
    replicas: Replicas, primary: Client, standby: Client
) -> None:
    async with standby.get(f"{API}/changes", params={"wait": 0}) as answer:
        position = (await answer.json())["position"]
    params = {"position": position, "wait": 20}
    polling = asyncio.create_task(standby.get(f"{API}/changes", params=params))
    timeout = aiohttp.ClientTimeout(sock_read=30)
    async with standby.get(f"{API}/feed", params={"position": position}, timeout=timeout) as feed:
        new = task(status="pending")
        await recorded(replicas, primary, new)
        assert [new["task_id"]] == [
            change["task"]["task_id"] for change in (await (await polling).json())["changes"]
        ]
        async for line in feed.content:
            if new["task_id"].encode() in line:
                break


async def test_a_reader_of_the_feed_may_move_to_a_standby_that_is_behind(
    replicas: Replicas, primary: Client, standby: Client
) -> None:
    with paused_replay(replicas.standby):
        new = [task(status="pending") for _ in range(3)]
        async with primary.post(TASKS, json=new) as answer:
            assert 201 == answer.status
        await primary.app[SERVICE].upkeep.sequence_events()
        async with primary.get(f"{API}/changes", params={"wait": 0}) as answer:
            position = (await answer.json())["position"]
        for wait in (0, 1):
            params = {"position": position, "wait": wait}
            async with standby.get(f"{API}/changes", params=params) as answer:
                body = await answer.json()
                assert (200, [], position) == (answer.status, body["changes"], body["position"])
        reads = metric(standby, STATEMENTS.format("read_feed"))
        params = {"position": position, "wait": 20}
        polling = asyncio.create_task(standby.get(f"{API}/changes", params=params))
        timeout = aiohttp.ClientTimeout(sock_read=30)
        feed = await standby.get(f"{API}/feed", params={"position": position}, timeout=timeout)
        await asyncio.sleep(1)
        assert 2 >= metric(standby, STATEMENTS.format("read_feed")) - reads
    newer = task(status="pending")
    await recorded(replicas, primary, newer)
    assert [newer["task_id"]] == [
        change["task"]["task_id"] for change in (await (await polling).json())["changes"]
    ]
    async for line in feed.content:
        assert not any(one["task_id"].encode() in line for one in new)
        if newer["task_id"].encode() in line:
            break
    feed.close()


async def test_a_page_on_a_standby_changes_with_the_primary(
    replicas: Replicas, primary: Client, standby: Client
) -> None:
    url = f"{API}/by-service/billing"
    seen = []
    for status in ("pending", "failed"):
        await recorded(replicas, primary, task(status=status, services_touched=["billing"]))
        answers = [await standby.get(url) for _ in range(3)]
        assert 1 == len({answer.headers["ETag"] for answer in answers})
        seen.append([one["status"] for one in (await answers[-1].json())["tasks"]])
    assert [["pending"], ["failed", "pending"]] == [sorted(each) for each in seen]


async def test_the_lag_of_a_standby_is_a_metric(
    replicas: Replicas, primary: Client, standby: Client
) -> None:
    await recorded(replicas, primary, task())
    name = "\ntask_audit_replay_lag_seconds "
    on_primary, on_standby = [
        await (await one.get("/metrics")).text() for one in (primary, standby)
    ]
    assert name not in on_primary
    assert 60 > float(on_standby.partition(name)[2].partition("\n")[0]) >= 0


async def scraped(client: Client, part: str) -> dict[str, float]:
    """The series of the metrics whose names contain a part."""
    text = await (await client.get("/metrics")).text()
    series = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in series if part in name}


async def test_the_primary_reports_its_standbys_and_slots(
    replicas: Replicas, primary: Client, standby: Client
) -> None:
    await recorded(replicas, primary, task())
    name = 'task_audit_standby_lag_{}{{standby="walreceiver"}}'
    lags = await scraped(primary, "standby_lag")
    assert {name.format("bytes"), name.format("seconds")} == set(lags)
    assert all(0 <= lag < 10**6 for lag in lags.values())
    create = "SELECT pg_create_physical_replication_slot('gone', immediately_reserve => TRUE)"
    execute(replicas.primary.dsn, create)
    try:
        slots = await scraped(primary, "task_audit_slot")
        assert 1 == slots["task_audit_slots_inactive"]
        assert 0 == slots["task_audit_slot_xmin_age_transactions"]
        assert 0 < slots["task_audit_slot_wal_bytes"]
    finally:
        execute(replicas.primary.dsn, "SELECT pg_drop_replication_slot('gone')")
    assert {} == await scraped(standby, "task_audit_slot")


async def test_a_role_without_pg_monitor_sees_slots_and_not_the_lag_of_standbys(
    replicas: Replicas, aiohttp_client: Clients
) -> None:
    primary = replicas.primary.dsn
    execute(primary, "CREATE ROLE plain LOGIN")
    migrate.grant(primary, ["plain"], [])
    client = await aiohttp_client(create_app(Settings(pool_size=2), as_role(primary, "plain")))
    assert {} == await scraped(client, "task_audit_standby_lag")
    assert 0 == (await scraped(client, "task_audit_slots_inactive"))["task_audit_slots_inactive"]
    execute(primary, "GRANT pg_monitor TO plain")
    assert 2 == len(await scraped(client, "task_audit_standby_lag"))


async def test_a_program_in_process_reads_a_standby(replicas: Replicas) -> None:
    async with AuditService.open(replicas.standby.dsn, Settings(pool_size=2)) as service:
        await service.audit_query(limit=1)
        with pytest.raises(ReadOnly, match="nothing is recorded"):
            await service.record([task()])
        with pytest.raises(ReadOnly):
            await service.upkeep.rebuild_counts()


async def test_a_snapshot_of_a_standby_is_another_one_only_if_tasks_have_changed(
    replicas: Replicas, primary: Client
) -> None:
    async with AuditService.open(replicas.standby.dsn, Settings(pool_size=2)) as service:

        async def snapshot() -> str | None:
            await asyncio.to_thread(replicas.wait_for_standby)
            return (await service.audit_query(limit=1)).snapshot

        await recorded(replicas, primary, task())
        before = await snapshot()
        execute(replicas.primary.dsn, "CREATE TABLE other ()", "DROP TABLE other")
        await primary.app[SERVICE].upkeep.fold_counts()
        assert before == await snapshot()
        with psycopg.connect(replicas.primary.dsn) as oldest:
            oldest.execute("SELECT pg_current_xact_id()")
            async with primary.post(TASKS, json=task()) as answer:
                assert 201 == answer.status
            assert before != await snapshot()


def test_commands_that_read_work_on_a_standby(replicas: Replicas) -> None:
    new = task(status="failed", services_touched=["commands"])
    assert 0 == audit("record", "-", "--dsn", replicas.primary.dsn, given=json.dumps(new))[0]
    replicas.wait_for_standby()
    for command, shown in (
        (("migrate", "--status"), migrations_on_disk()[-1]),
        (("migrate",), "nothing to do"),
        (("counts", "--check"), "all counts are exact"),
        (("log", "status"), "queue"),
        (("keys", "list"), ""),
        (("failures", "--service", "commands"), "commands"),
        (("show", new["task_id"]), new["task_id"]),
        (("show", new["task_id"], "--changes"), "recorded"),
        (("stats", "--last", "7d", "--facet", "service"), "commands"),
    ):
        code, output, logged = audit(*command, "--dsn", replicas.standby.dsn)
        assert (command, 0, "") == (command, code, logged)
        assert shown in output


def test_commands_that_write_say_that_a_standby_accepts_no_writes(replicas: Replicas) -> None:
    for command in (
        ("record", "-"),
        ("counts", "--rebuild"),
        ("keys", "create", "--name", "a", "--scope", "read"),
        ("migrate", "--rollback"),
        ("migrate", "--grant-to", "audit_service"),
    ):
        code, _, logged = audit(*command, "--dsn", replicas.standby.dsn, given=json.dumps(task()))
        assert (command, 69) == (command, code)
        assert REFUSED in logged


def test_the_status_of_migrations_writes_nothing(empty_dsn: str) -> None:
    listed = migrate.status(empty_dsn)
    assert [(name, False) for name in migrations_on_disk()] == [
        (one.name, one.applied) for one in listed
    ]


def test_the_whole_service_on_a_standby(replicas: Replicas, tmp_path: Path) -> None:
    given = ("--dsn", replicas.standby.dsn, "--migrate", "--workers", "1")
    with (tmp_path / "log").open("wb") as log, serving(*given, log=log) as (_, url, _):
        assert (200, {"status": "ready", "role": "standby"}) == get(f"{url}/readyz")
        wait_until(lambda: "accepts no writes" in (tmp_path / "log").read_text())
        assert 200 == get(f"{url}{API}/query?limit=1")[0]
    assert 1 == len((tmp_path / "log").read_text().splitlines())
