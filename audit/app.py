"""Composition root: routes, middlewares, pool and service."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from audit.database import open_pool
from audit.errors import Problem, TooManyRequests
from audit.handlers import POOL, SERVICE, SETTINGS, docs, health, reading, writing
from audit.problems import problems
from audit.service import AuditService
from audit.settings import Settings

log = logging.getLogger("audit")

_API = "/api/v1/audit"
_PARTITIONS_EVERY_SECONDS = 3600


def create_app(settings: Settings, dsn: str) -> web.Application:
    """Return the service on the database at `dsn`, whose schema is current."""
    app = web.Application(middlewares=[problems, _bounded(settings.max_in_flight)])
    app[SETTINGS] = settings
    app.cleanup_ctx.append(_service(dsn))
    app.router.add_get(f"{_API}/failures", reading.get_failures)
    app.router.add_get(_API + "/by-service/{service_name:[^/]+}", reading.get_by_service)
    app.router.add_get(f"{_API}/query", reading.audit_query)
    app.router.add_get(_API + "/tasks/{task_id:[^/]+}", reading.get_task)
    app.router.add_post(f"{_API}/tasks", writing.record)
    app.router.add_patch(_API + "/tasks/{task_id:[^/]+}", writing.update)
    app.router.add_get("/healthz", health.healthz)
    app.router.add_get("/readyz", health.readyz)
    docs.add_routes(app)
    return app


def _service(dsn: str) -> Callable[[web.Application], AsyncIterator[None]]:
    async def run(app: web.Application) -> AsyncIterator[None]:
        settings = app[SETTINGS]
        async with open_pool(settings, dsn) as pool:
            app[POOL] = pool
            app[SERVICE] = AuditService(
                pool,
                partition=settings.partition,
                acquire_timeout_seconds=settings.acquire_timeout_seconds,
            )
            ahead = asyncio.create_task(_keep_partitions_ahead(app[SERVICE]))
            yield
            ahead.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await ahead

    return run


async def _keep_partitions_ahead(service: AuditService) -> None:
    """Programs that record by SQL find the partitions of the coming months there."""
    while True:
        try:
            await service.make_coming_partitions()
        except Problem as problem:
            log.warning("partitions of the coming months: %s", problem.detail)
        await asyncio.sleep(_PARTITIONS_EVERY_SECONDS)


def _bounded(max_in_flight: int) -> Middleware:
    """Refuse at once what would only wait; health is always told."""
    in_flight = 0

    @web.middleware
    async def bounded(request: web.Request, handler: Handler) -> web.StreamResponse:
        nonlocal in_flight
        if not request.path.startswith(_API):
            return await handler(request)
        if in_flight >= max_in_flight:
            raise TooManyRequests(
                f"{max_in_flight} requests are under way in this process", retry_after_seconds=1
            )
        in_flight += 1
        try:
            return await handler(request)
        finally:
            in_flight -= 1

    return bounded
