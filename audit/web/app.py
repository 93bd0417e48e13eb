"""Composition root: routes, middlewares, pool and service."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor

from aiohttp import web
from aiohttp.typedefs import Handler

from audit.access.identity import Scope
from audit.access.rates import Rates
from audit.addresses import networks_of
from audit.deadlines import Deadline, DeadlineExceeded, stop
from audit.errors import TimedOut
from audit.history.answers import Answers
from audit.history.service import AuditService
from audit.postgres import statements
from audit.postgres.pool import open_pool
from audit.settings import Settings
from audit.telemetry.metrics import Metrics, Seat
from audit.telemetry.tracing import Traces
from audit.web.buffers import Incoming
from audit.web.cors import cors
from audit.web.guard import Guard
from audit.web.handlers import asking, docs, health, recording
from audit.web.observe import tracing, watching
from audit.web.problems import problems
from audit.web.state import (
    ANSWERS,
    BODY,
    BODY_DEADLINE,
    DRAINING,
    METRICS,
    PARSER,
    POOL,
    SERVICE,
    SETTINGS,
)

_API = "/api/v1/audit"
#: A fifth of Python's default.
_SWITCH_SECONDS = 0.001


def create_app(
    settings: Settings,
    dsn: str,
    rates: Rates | None = None,
    seat: Seat | None = None,
    traces: Traces | None = None,
) -> web.Application:
    """Return the service on the database at `dsn`, whose schema is current.

    `rates` are those that all workers share, `seat` is where this one counts for all of them;
    None: there is no other. `traces` are closed with it.
    """
    # aiohttp accepts compressed bodies that are cut off; `coding` decodes them.
    app = web.Application(handler_args={"auto_decompress": False})
    app[SETTINGS] = settings
    app[DRAINING] = asyncio.Event()
    app[BODY_DEADLINE] = Deadline(settings.request_timeout_seconds)
    guard = Guard(settings, rates or Rates(settings.rate_per_second))
    app.cleanup_ctx.append(_parser)
    app.cleanup_ctx.append(_guard(guard, dsn))
    app.cleanup_ctx.append(_service(dsn, traces))

    incoming = Incoming(settings.max_bodies_bytes)

    def reads(handler: Handler) -> Handler:
        return guard.allow(Scope.READ)(_in_turn(_in_time(settings, handler)))

    def records(handler: Handler) -> Handler:
        # The body has its time limit, and so has the write. A limit of both would answer while
        # PostgreSQL still writes.
        return guard.allow(Scope.RECORD)(_in_turn(_with_room(incoming, handler)))

    app.router.add_get(f"{_API}/failures", reads(asking.get_failures))
    app.router.add_get(_API + "/by-service/{service_name:[^/]+}", reads(asking.get_by_service))
    app.router.add_get(f"{_API}/query", reads(asking.audit_query))
    app.router.add_get(_API + "/tasks/{task_id:[^/]+}", reads(asking.get_task))
    app.router.add_post(f"{_API}/tasks", records(recording.record))
    app.router.add_patch(_API + "/tasks/{task_id:[^/]+}", records(recording.update))
    app.router.add_get("/healthz", health.healthz)
    app.router.add_get("/readyz", _in_time(settings, health.readyz))
    app.router.add_get("/metrics", guard.allow(Scope.ADMIN)(_in_time(settings, health.metrics)))
    docs.add_routes(app)
    app[METRICS] = Metrics(
        (resource.canonical for resource in app.router.resources()), seat, statements.names()
    )
    if traces:
        app.middlewares.append(tracing(traces))
    trusted = networks_of(settings.trusted_proxy or "")
    app.middlewares.append(watching(app[METRICS], settings.log_sample, trusted))
    if settings.cors_origin:
        app.middlewares.append(cors(frozenset(settings.cors_origin.split(","))))
    app.middlewares.append(problems)
    return app


async def _parser(app: web.Application) -> AsyncIterator[None]:
    """One thread: more of them would only take the interpreter from the event loop.

    While it runs, the event loop waits for the interpreter up to five times in a request.
    """
    interval = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_SECONDS)
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="parser") as app[PARSER]:
        yield
    sys.setswitchinterval(interval)


def _guard(guard: Guard, dsn: str) -> Callable[[web.Application], AsyncIterator[None]]:
    """On a connection of its own: however busy the others are, a key is revoked in time."""

    async def run(app: web.Application) -> AsyncIterator[None]:
        settings = app[SETTINGS].model_copy(update={"pool_size": 1})
        async with open_pool(settings, dsn, app[METRICS]) as pool:
            await guard.learn(pool)
            watch = asyncio.create_task(guard.keep_learning(pool))
            yield
            await stop(watch)

    return run


def _service(dsn: str, traces: Traces | None) -> Callable[[web.Application], AsyncIterator[None]]:
    async def run(app: web.Application) -> AsyncIterator[None]:
        settings = app[SETTINGS]
        app[METRICS].pool(settings.pool_size)
        async with open_pool(settings, dsn, app[METRICS], traces) as pool:
            app[POOL] = pool
            app[SERVICE] = AuditService(pool, settings, metrics=app[METRICS])
            app[ANSWERS] = Answers(app[SERVICE].reading, settings.answers_bytes)
            async with app[SERVICE].upkeep.running():
                yield
        if traces:
            await traces.close()

    return run


def _in_turn(handler: Handler) -> Handler:
    """Let a client read the responses that it has been sent before it gets another one."""

    async def handle(request: web.Request) -> web.StreamResponse:
        if request.protocol.writing_paused:
            await request.writer.drain()
        return await handler(request)

    return handle


def _with_room(incoming: Incoming, handler: Handler) -> Handler:
    """Count the body of a request until it is recorded."""

    async def handle(request: web.Request) -> web.StreamResponse:
        with incoming.body() as body:
            request[BODY] = body
            return await handler(request)

    return handle


def _in_time(settings: Settings, handler: Handler) -> Handler:
    """End a request that takes longer than `request_timeout_seconds`."""
    deadline = Deadline(settings.request_timeout_seconds)

    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            return await deadline.run(handler(request))
        except DeadlineExceeded as exceeded:
            raise TimedOut(
                f"the request was not done within {exceeded.seconds:g} seconds"
            ) from None

    return handle
