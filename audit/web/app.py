"""Puts the application together: routes, middlewares, connection pools and background work."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager

from aiohttp import web

from audit.access.rates import Rates
from audit.addresses import networks_of
from audit.deadlines import Deadline, stop
from audit.history.answers import Answers
from audit.history.exports import Exports, export_settings
from audit.history.service import AuditService
from audit.postgres import statements
from audit.postgres.pool import open_pool, open_pools
from audit.settings import Settings
from audit.telemetry.metrics import Metrics, Seat
from audit.telemetry.request_log import RequestLog
from audit.telemetry.tracing import Traces
from audit.web.buffers import BodyMemory
from audit.web.cors import cors
from audit.web.guard import GUARD, Guard
from audit.web.observe import Observer, tracing
from audit.web.openapi import document_json
from audit.web.pipeline import Pipeline
from audit.web.routes import ROUTES
from audit.web.state import (
    ANSWERS,
    BODY_MEMORY,
    DEADLINE,
    DRAINING,
    EXPORTS,
    METRICS,
    OPENAPI,
    PARSER,
    POOL,
    SERVICE,
    SETTINGS,
    WRITES,
)

#: A fifth of Python's default.
_SWITCH_SECONDS = 0.001
#: How long a connection for exports stays open after an export.
_IDLE_EXPORT_SECONDS = 30


def create_app(
    settings: Settings,
    dsn: str,
    rates: Rates | None = None,
    seat: Seat | None = None,
    traces: Traces | None = None,
) -> web.Application:
    """Return the application on the database at `dsn`, whose schema must be current.

    `rates` are shared by all workers, and `seat` is this worker's part of the shared metrics. None
    means that there is only one worker. The application closes `traces` when it ends.
    """
    app = web.Application()
    app[SETTINGS] = settings
    paths = (route.path for route in ROUTES)
    app[METRICS] = Metrics(paths, seat, statements.NAMES, settings.standbys)
    app[DEADLINE] = Deadline(settings.request_timeout_seconds)
    app[DRAINING] = asyncio.Event()
    app[BODY_MEMORY] = BodyMemory(settings.max_bodies_bytes)
    app[WRITES] = set()
    render: Callable[[], bytes] = document_json
    app[OPENAPI] = render
    guard = app[GUARD] = Guard(settings, rates or Rates(settings.rate_per_second))
    trusted = networks_of(settings.trusted_proxy or "")
    observer = Observer(app[METRICS], RequestLog(settings.log_sample), trusted)
    pipeline = Pipeline(guard, observer, app[DEADLINE], app[DRAINING])
    for route in ROUTES:
        # A parameter in a path matches any text except for a slash. Only `file` may contain them.
        path = route.path.replace("}", ":[^/]+}").replace("{file:[^/]+}", "{file:.+}")
        app.add_routes([web.route(route.method, path, pipeline.protect(route))])
    app.cleanup_ctx.append(_lifespan(guard, dsn, traces))
    if traces:
        app.middlewares.append(tracing(traces))
    if settings.cors_origin:
        app.middlewares.append(cors(frozenset(settings.cors_origin.split(","))))
    app.middlewares.append(pipeline.refuse_without_route)
    return app


def _lifespan(
    guard: Guard, dsn: str, traces: Traces | None
) -> Callable[[web.Application], AsyncIterator[None]]:
    """Return what opens the pools and starts the background work, and later ends them."""

    async def run(app: web.Application) -> AsyncIterator[None]:
        settings, metrics = app[SETTINGS], app[METRICS]
        metrics.pool(settings.pool_size + settings.standby_pool_size * len(settings.standbys))
        # The keys have a connection of their own. A revoked key is then refused in time even if
        # all other connections are busy.
        keys_settings = settings.model_copy(update={"pool_size": 1})
        with _parser() as app[PARSER]:
            async with (
                open_pool(keys_settings, dsn, metrics) as keys_pool,
                guard.watching(keys_pool),
                open_pools(settings, dsn, metrics, traces) as pools,
                open_pool(
                    export_settings(settings),
                    dsn,
                    metrics,
                    traces,
                    idle_seconds=_IDLE_EXPORT_SECONDS,
                ) as exports_pool,
            ):
                app[POOL] = pools.writing
                app[SERVICE] = AuditService(
                    pools.writing, settings, metrics=metrics, standbys=pools.reading
                )
                app[ANSWERS] = Answers(app[SERVICE].reading, settings.answers_bytes, metrics)
                app[EXPORTS] = Exports(exports_pool, app[SERVICE].database, settings, metrics)
                async with (
                    app[SERVICE].upkeep.running(),
                    app[SERVICE].staleness.measured(),
                    app[SERVICE].sources.checked(),
                    _closing_feed(app),
                ):
                    yield
                await app[EXPORTS].close()
        if traces:
            await traces.close()

    return run


@asynccontextmanager
async def _closing_feed(app: web.Application) -> AsyncIterator[None]:
    """Close the feed when the process is about to end, for as long as the block runs."""

    async def close() -> None:
        await app[DRAINING].wait()
        app[SERVICE].feed.close()

    closing = asyncio.create_task(close())
    try:
        yield
    finally:
        await stop(closing)


@contextmanager
def _parser() -> Iterator[ThreadPoolExecutor]:
    """Start the thread that parses large bodies.

    More threads would only take the interpreter from the event loop, which waits for it up to five
    times per request while one of them runs. So switch between threads more often.
    """
    interval = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_SECONDS)
    try:
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="parser") as thread:
            yield thread
    finally:
        sys.setswitchinterval(interval)
