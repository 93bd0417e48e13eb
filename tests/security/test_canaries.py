"""Words sent in every place of a request, secrets among them, show nowhere that others look."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from urllib.parse import quote

import aiohttp
import psycopg

from tests.commands.test_cli import audit
from tests.conftest import task
from tests.processes import serving
from tests.telemetry.test_tracing import collecting

API = "/api/v1/audit"
PASSWORD = "canary-password"  # noqa: S105 - of nobody
WRONG_TOKEN = "taskaudit_canary-token"  # noqa: S105 - of nobody


async def send_canaries(url: str, key: str) -> None:
    """Send them where they are taken, where they are refused, and where the database fails."""
    word = quote("canary'; SELECT 1 --")
    known = task(
        request_text="canary-text",
        created_by="canary-person",
        services_touched=["canary-service"],
        status="pending",
        outcome={"action_type": "canary-intent", "canary-member": "canary-value"},
    )
    changed = {**known, "request_text": "canary-other"}
    paths = (
        f"/by-service/{word}",
        f"/query?created_by={word}&intent=canary-intent&service=canary-service",
        f"/query?{word}={word}",
        f"/query?status={word}",
        f"/query?cursor={word}",
        f"/failures?service=canary-service&service={word}",
        f"/tasks/{word}",
        f"/{word}",
    )
    bodies: tuple[object, ...] = (
        known, changed, {**known, "status": "canary"}, {"canary": 1}, ["canary"], "canary",
    )  # fmt: skip
    headers = {"Authorization": f"Bearer {key}", "X-Canary": "canary", "User-Agent": "canary"}
    async with aiohttp.ClientSession(headers=headers) as session:
        for path in paths:
            for etag in ({}, {"If-None-Match": '"canary"'}):
                await (await session.get(f"{url}{API}{path}", headers=etag)).read()
        for body in bodies:
            await (await session.post(f"{url}{API}/tasks", json=body)).read()
        change = {"error_message": "canary-error", "status": "failed"}
        path = f"{API}/tasks/{known['task_id']}"
        await (await session.patch(f"{url}{path}", json=change)).read()
        for token in (WRONG_TOKEN, "canary.canary.canary", "canary"):
            refused = {"Authorization": f"Bearer {token}"}
            answer = await session.get(f"{url}{API}/query", headers=refused)
            assert "canary" not in await answer.text()


async def test_canaries_show_in_no_log_trace_or_metric(dsn: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    scopes = ("--scope", "read", "--scope", "record", "--scope", "admin")
    key = audit("keys", "create", "--name", "k", *scopes, AUDIT_DSN=dsn)[1].strip()
    with collecting() as (collector, got):
        options = ("--traces", "--log-sample", "1", "--log-format", "json", "--workers", "2",
                   "--statement-timeout-seconds", "0.3")  # fmt: skip
        secret = dsn.replace("audit@", f"audit:{PASSWORD}@")
        with (
            log.open("wb") as errors,
            serving(*options, log=errors, AUDIT_DSN=secret,
                    OTEL_EXPORTER_OTLP_ENDPOINT=collector) as (process, url, printed),
        ):  # fmt: skip
            await send_canaries(url, key)
            with psycopg.connect(dsn) as other:
                other.execute("LOCK TABLE tasks IN ACCESS EXCLUSIVE MODE")
                await send_canaries(url, key)
            async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {key}"}) as session:
                metrics = await (await session.get(f"{url}/metrics")).text()
            process.terminate()
            await asyncio.to_thread(process.wait)

    lines = log.read_text().splitlines()
    statuses = {json.loads(line).get("status") for line in lines}
    spans = [
        span.SerializeToString()
        for request in got
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    assert {200, 201, 401, 404, 409, 422, 504} <= statuses
    assert len(spans) > 50
    assert "task_audit_http_requests_total" in metrics
    for told in ("\n".join(lines), repr(got), repr(spans), metrics, "\n".join(printed)):
        for word in ("canary", key, key[10:], "SELECT"):
            assert word not in told
