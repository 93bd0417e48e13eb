"""A worker: one process that serves on the listening socket."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import multiprocessing
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.context import ForkProcess
from typing import Final

from aiohttp import web

from audit.access.rates import Rates
from audit.errors import Unavailable
from audit.process.connections import connections_of
from audit.process.loop import run
from audit.settings import Settings
from audit.telemetry.metrics import Seat
from audit.telemetry.tracing import Traces
from audit.web.app import create_app
from audit.web.state import DRAINING

log = logging.getLogger("audit")

BACKLOG: Final = 1024
#: How long kept-alive connections stay open, so that the next answer on each can close it.
_LINGER_SECONDS: Final = 1
#: How long clients may take to read the last answers, and then the pool to close.
_END_SECONDS: Final = 5
_STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
#: Python's default is 700.
_NEW_OBJECTS: Final = 5000
#: Open files that are neither a client's connection nor the pool's.
_OTHER_FILES: Final = 64


@dataclass(frozen=True, slots=True)
class Shared:
    """What all workers share. The supervisor makes it before it forks them."""

    settings: Settings
    dsn: str
    listener: socket.socket
    rates: Rates


class Worker:
    """A worker process, as its supervisor sees it."""

    def __init__(self, shared: Shared, seat: Seat) -> None:
        self.seat = seat
        self.started_at = time.monotonic()
        self.is_serving = False
        context = multiprocessing.get_context("fork")
        self.ready_pipe, writer = context.Pipe(duplex=False)
        self.process: ForkProcess = context.Process(
            target=_main, args=(shared, seat, writer), daemon=True
        )
        # Until the worker installs its own handlers, it must not run those of the supervisor.
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)
        writer.close()

    def check_ready(self) -> None:
        """Set `is_serving` once the worker accepts connections."""
        if not self.is_serving and self.ready_pipe.poll():
            try:
                self.ready_pipe.recv_bytes()
                self.is_serving = True
            except EOFError:
                pass  # the process has ended


def stop_seconds(settings: Settings) -> float:
    """Return how long a worker may take to stop before it is killed."""
    return settings.request_timeout_seconds + _LINGER_SECONDS + 2 * _END_SECONDS


def _main(shared: Shared, seat: Seat, ready_pipe: connection.Connection) -> None:
    """Run the worker in its own process."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    _raise_file_limit(shared.settings)
    try:
        run(_serve(shared, seat, lambda: ready_pipe.send_bytes(b"")))
    except KeyboardInterrupt:
        pass
    except Unavailable as failure:
        log.error(  # noqa: TRY400 - the cause is in the message
            "a worker cannot serve: %s (%r)", failure.detail, failure.__cause__
        )
        sys.exit(1)


async def _serve(shared: Shared, seat: Seat, ready: Callable[[], None]) -> None:
    """Serve until a stop signal comes or the supervisor dies, then finish the open requests."""
    settings = shared.settings
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in _STOP_SIGNALS:
        loop.add_signal_handler(number, stop.set)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)
    supervisor = multiprocessing.parent_process()
    assert supervisor is not None  # noqa: S101 - this runs in a child process

    def stop_as_orphan() -> None:
        # The sentinel stays readable. Without this, the loop would call us again and again.
        loop.remove_reader(supervisor.sentinel)
        # The supervisor can no longer kill a worker that does not stop. The alarm does it instead.
        signal.alarm(math.ceil(stop_seconds(settings)))
        stop.set()

    loop.add_reader(supervisor.sentinel, stop_as_orphan)
    traces = Traces() if settings.traces else None
    app = create_app(settings, shared.dsn, shared.rates, seat, traces)
    runner = web.AppRunner(
        app, handler_cancellation=True, shutdown_timeout=settings.request_timeout_seconds
    )
    await runner.setup()
    try:
        assert runner.server is not None  # noqa: S101 - `setup` has made it
        connections = connections_of(app, runner.server)
        server = await loop.create_server(connections, sock=shared.listener, backlog=BACKLOG)
        _settle_garbage_collection()
        ready()
        await stop.wait()
        # Other workers accept new connections. Each answer from now on closes its connection.
        app[DRAINING].set()
        server.close()
        if supervisor.is_alive():
            await connections.wait_closed(_LINGER_SECONDS)
    finally:
        await runner.cleanup()
    await connections.wait_closed(_END_SECONDS)


def _settle_garbage_collection() -> None:
    """Keep the garbage collector from stopping requests for long.

    All that the worker has made by now stays until it ends. To look at it again would take 50 ms
    each time. The requests that are served at once have more new objects than Python's threshold
    for the youngest, so it would look at these all the time, and find nothing.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_NEW_OBJECTS)


def _raise_file_limit(settings: Settings) -> None:
    """Raise the soft limit of open files if it is lower than the settings need."""
    needed = settings.max_connections + settings.pool_size + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < needed:
        log.warning(
            "this system allows %d open files in a process; max_connections and pool_size need %d",
            *(allowed, needed),
        )
