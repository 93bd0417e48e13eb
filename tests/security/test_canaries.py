"""Secrets and values of requests never appear in logs, traces or metrics."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import aiohttp
import psycopg

from tests.commandline import audit
from tests.processes import serving
from tests.security.canaries import send_canaries
from tests.telemetry.collector import collecting

API = "/api/v1/audit"
PASSWORD = "canary-password"  # noqa: S105 - of nobody


async def test_no_value_of_a_request_appears_in_logs_traces_or_metrics(
    dsn: str, tmp_path: Path
) -> None:
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
