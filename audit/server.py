"""Runs the service: database, schema, one listening socket, worker processes, an orderly end."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime
from ipaddress import ip_address
from multiprocessing import connection
from multiprocessing.context import ForkProcess
from typing import TypeVar

import uvloop
from aiohttp import web

from audit import demo, embedded, migrate, models, tracing
from audit.access import Insecure
from audit.app import create_app
from audit.database import open_pool
from audit.errors import Unavailable
from audit.keys import read_keys
from audit.metrics import Seat, seats
from audit.rates import Rates
from audit.service import AuditService
from audit.settings import Settings
from audit.tracing import Traces

log = logging.getLogger("audit")

DEMO_TASKS = 20_000
DEMO_DAYS = 90
_BATCH = 1000
_BACKLOG = 1024
_KEEPALIVE_SECONDS = 75
_DRAIN_SECONDS = 10
_RESTART_AFTER_SECONDS = 1
_OTHER_CONNECTIONS = 20
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)

_Result = TypeVar("_Result")


def serve(settings: Settings, announce: Callable[[str, int], None]) -> None:
    """Serve until SIGINT or SIGTERM, then finish what is under way.

    Where no loop runs, either is a KeyboardInterrupt, as `cli.main` arranges, and leaves as one.
    `announce` is called once it listens, with its URL and the number of tasks recorded.

    Raises:
        Unavailable: no database, or the address is taken.
        Insecure: there are no keys, and the address is not a loopback one.
        SchemaNotCurrent: the schema is behind, and `settings.migrate` does not say to move it.
    """
    if settings.traces:
        tracing.require()
    with _listening(settings) as listener, database(settings) as dsn:
        tasks = run(_prepare(settings, dsn, listener))
        rates = Rates(settings.rate_per_second)

        def ready() -> None:
            announce(_url(listener), tasks)

        if settings.workers == 1:
            run(_serve(settings, dsn, listener, rates, ready))
            # uvloop leaves handlers behind that end a process at once.
            for number in _STOP_SIGNALS:
                signal.signal(number, signal.SIG_IGN)
        else:
            _supervise(settings, dsn, listener, rates, ready)


def run(main: Coroutine[object, object, _Result]) -> _Result:
    """Run a coroutine on uvloop."""
    with closing(main), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


@contextmanager
def database(settings: Settings) -> Iterator[str]:
    """Yield the DSN of the database in use, its schema moved up if the settings say so."""
    with ExitStack() as stack:
        if settings.dsn is not None:
            dsn = settings.dsn.get_secret_value()
        else:
            wanted = settings.workers * (settings.pool_size + 1) + _OTHER_CONNECTIONS
            options = {"max_connections": str(max(100, wanted))}
            dsn = stack.enter_context(embedded.running(settings.data_dir, options=options))
        if settings.dsn is None if settings.migrate is None else settings.migrate:
            migrate.apply(dsn)
        yield dsn


@contextmanager
def _listening(settings: Settings) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listener = socket.create_server(
            (settings.host, settings.port), family=family, backlog=_BACKLOG
        )
    except OSError as failure:
        raise Unavailable(
            f"cannot listen on {settings.host} port {settings.port}: {failure.strerror};"
            " give another --host or --port"
        ) from None
    with listener:
        yield listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


async def _prepare(settings: Settings, dsn: str, listener: socket.socket) -> int:
    """Check the schema, record demo tasks if asked for; return the number of tasks."""
    async with open_pool(settings.model_copy(update={"pool_size": 1}), dsn) as pool:
        await migrate.require_current(pool)
        is_guarded = settings.jwt_issuer is not None or not (await read_keys(pool)).are_none
        host = listener.getsockname()[0]
        if not is_guarded and not settings.insecure and not ip_address(host).is_loopback:
            raise Insecure(
                f"whoever reaches {host} could read and record, since there are no keys: make one"
                " with `audit keys create`, or say --insecure"
            )
        service = AuditService(pool, partition=settings.partition)
        tasks = await service.get_task_count()
        if settings.demo and tasks == 0:
            # Of the last full hour: services that start together on one database agree.
            until = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
            history = list(demo.generate(DEMO_TASKS, days=DEMO_DAYS, until=until))
            batches = [history[i : i + _BATCH] for i in range(0, len(history), _BATCH)]
            # One transaction: a start that is cut short leaves no part of it.
            done = await service.record_batches([models.batch_of(batch) for batch in batches])
            tasks = done.recorded + done.duplicates
        return tasks


async def _serve(
    settings: Settings,
    dsn: str,
    listener: socket.socket,
    rates: Rates,
    ready: Callable[[], None],
    seat: Seat | None = None,
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in _STOP_SIGNALS:
        loop.add_signal_handler(number, stop.set)
    parent = multiprocessing.parent_process()
    if parent is not None:
        loop.add_reader(parent.sentinel, stop.set)
    runner = web.AppRunner(
        create_app(settings, dsn, rates, seat, Traces() if settings.traces else None),
        access_log=None,
        handler_cancellation=True,
        keepalive_timeout=_KEEPALIVE_SECONDS,
        shutdown_timeout=_DRAIN_SECONDS,
    )
    await runner.setup()
    try:
        await web.SockSite(runner, listener, backlog=_BACKLOG).start()
        ready()
        await stop.wait()
    finally:
        await runner.cleanup()


def _work(settings: Settings, dsn: str, listener: socket.socket, rates: Rates, seat: Seat) -> None:
    try:
        run(_serve(settings, dsn, listener, rates, lambda: None, seat))
    except KeyboardInterrupt:
        pass
    except Unavailable as failure:
        log.error(  # noqa: TRY400 - it is told whole
            "a worker cannot serve: %s (%r)", failure.detail, failure.__cause__
        )
        sys.exit(1)


def _supervise(
    settings: Settings,
    dsn: str,
    listener: socket.socket,
    rates: Rates,
    ready: Callable[[], None],
) -> None:
    """Keep the workers running; a worker that dies is replaced."""
    context = multiprocessing.get_context("fork")

    def start(seat: Seat) -> ForkProcess:
        worker = context.Process(
            target=_work, args=(settings, dsn, listener, rates, seat), daemon=True
        )
        worker.start()
        return worker

    places = seats(settings.workers)
    workers = [start(seat) for seat in places]
    try:
        ready()
        while True:
            ended = connection.wait([worker.sentinel for worker in workers])
            time.sleep(_RESTART_AFTER_SECONDS)
            for index, worker in enumerate(workers):
                if worker.sentinel in ended:
                    worker.join()
                    log.warning("worker %d ended with %s", worker.pid, worker.exitcode)
                    places[index].restarted()
                    workers[index] = start(places[index])
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.join(2 * _DRAIN_SECONDS)
            worker.kill()
