"""Liveness, readiness and metrics."""

from __future__ import annotations

from aiohttp import web

from audit.errors import Unavailable
from audit.history.query import AuditQuery
from audit.postgres import statements
from audit.postgres.pool import fetch_row
from audit.postgres.schema import pending_migrations
from audit.web.responses import BytesResponse, json_response
from audit.web.state import METRICS, POOL, SERVICE

_MEASURE_SECONDS = 1


async def healthz(request: web.Request) -> BytesResponse:
    """Check that the process is running.

    Does not check the database.
    """
    return json_response(b'{"status":"ok"}')


async def readyz(request: web.Request) -> BytesResponse:
    """Check that the service can answer requests.

    The database must answer, and its migrations must be current. `role` says whether the service
    can also record: it can on a `primary`, and not on a `standby` or a `read-only` server.
    """
    pending = await pending_migrations(request.app[POOL])
    if pending:
        raise Unavailable(
            f"the database lacks migrations: {', '.join(pending)}; run `audit migrate`",
            retry_after_seconds=10,
        )
    service = request.app[SERVICE]
    await service.reading.list_tasks(AuditQuery(limit=1))
    async with service.database.connection() as connection:
        row = await fetch_row(connection, statements.READ_ROLE)
    return json_response(b'{"status":"ready","role":"%s"}' % row["role"].encode())


async def metrics(request: web.Request) -> BytesResponse:
    """Get the metrics of all workers for Prometheus.

    The format is OpenMetrics if `Accept` asks for it.
    """
    service = request.app[SERVICE]
    deltas = await service.upkeep.measure_deltas(_MEASURE_SECONDS)
    log = await service.log.measure(_MEASURE_SECONDS) if deltas is not None else None
    role = await service.database.measure(statements.READ_ROLE, _MEASURE_SECONDS) if log else None
    lag_seconds = role["lag_seconds"] if role else None
    is_primary = role is not None and role["role"] == "primary"
    replication = await service.log.measure_replication(_MEASURE_SECONDS) if is_primary else None
    accept = request.headers.get("Accept", "")
    body, content_type = request.app[METRICS].render(accept, deltas, log, lag_seconds, replication)
    return BytesResponse(body, {"Content-Type": content_type})
