"""Worker processes on one listening socket: kept running, replaced one by one, ended in order."""

from __future__ import annotations

import asyncio
import logging
import math
import multiprocessing
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine
from contextlib import closing
from multiprocessing import connection
from multiprocessing.context import ForkProcess
from typing import Final, TypeVar

import uvloop
from aiohttp import web

from audit.access.rates import Rates
from audit.errors import Unavailable
from audit.process.connections import Connections
from audit.settings import Settings
from audit.telemetry.metrics import Seat, seats
from audit.telemetry.tracing import Traces
from audit.web.app import create_app
from audit.web.state import DRAINING, METRICS

log = logging.getLogger("audit")

BACKLOG: Final = 1024
#: So long the clients of kept-alive connections may ask once more, to be told of the end.
_LINGER_SECONDS: Final = 1
#: Beyond the time of a request: for answers to be read, and for the pool to close.
_END_SECONDS: Final = 5
#: A worker that ends sooner than this is not replaced at once.
_SHORT_LIFE_SECONDS: Final = 1
_LOOK_SECONDS: Final = 0.25
_STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
_STANDARD_INPUT: Final = 0
#: Files of a worker that are no connections.
_OTHER_FILES: Final = 64

_Result = TypeVar("_Result")


def run(main: Coroutine[object, object, _Result]) -> _Result:
    """Run a coroutine on uvloop."""
    with closing(main), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


# --- a worker -------------------------------------------------------------------------------------


async def _serve(
    settings: Settings,
    dsn: str,
    listener: socket.socket,
    rates: Rates,
    seat: Seat,
    ready: Callable[[], None],
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in _STOP_SIGNALS:
        loop.add_signal_handler(number, stop.set)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)
    parent = multiprocessing.parent_process()
    assert parent is not None  # noqa: S101 - it runs in a process of its own

    def orphaned() -> None:
        # The sentinel stays readable, so the loop would call this again and again.
        loop.remove_reader(parent.sentinel)
        # The supervisor, which would kill a worker that does not end, is gone. The alarm does it.
        signal.alarm(math.ceil(_end_seconds(settings)))
        stop.set()

    loop.add_reader(parent.sentinel, orphaned)
    app = create_app(settings, dsn, rates, seat, Traces() if settings.traces else None)
    runner = web.AppRunner(
        app, handler_cancellation=True, shutdown_timeout=settings.request_timeout_seconds
    )
    await runner.setup()
    try:
        assert runner.server is not None  # noqa: S101 - it is set up
        connections = Connections(
            runner.server,
            app[METRICS].refused,
            most=settings.max_connections,
            answer_seconds=settings.request_timeout_seconds,
            idle_seconds=settings.idle_timeout_seconds,
            most_unread_bytes=settings.max_unread_bytes,
        )
        server = await loop.create_server(connections, sock=listener, backlog=BACKLOG)
        ready()
        await stop.wait()
        # The other workers take the new connections; clients of ours are told to make new ones.
        app[DRAINING].set()
        server.close()
        if parent.is_alive():
            await connections.leave(_LINGER_SECONDS)
    finally:
        await runner.cleanup()
    await connections.leave(_END_SECONDS)


def _work(
    settings: Settings,
    dsn: str,
    listener: socket.socket,
    rates: Rates,
    seat: Seat,
    serves: connection.Connection,
) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    _allow_files(settings.max_connections + settings.pool_size + _OTHER_FILES)
    try:
        run(_serve(settings, dsn, listener, rates, seat, lambda: serves.send_bytes(b"")))
    except KeyboardInterrupt:
        pass
    except Unavailable as failure:
        log.error(  # noqa: TRY400 - it is told whole
            "a worker cannot serve: %s (%r)", failure.detail, failure.__cause__
        )
        sys.exit(1)


def _end_seconds(settings: Settings) -> float:
    """Return how long a worker may take to end."""
    return settings.request_timeout_seconds + _LINGER_SECONDS + 2 * _END_SECONDS


def _allow_files(wanted: int) -> None:
    """Raise the soft limit of open files if it is below what the settings allow to be open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < wanted:
        log.warning(
            "this system allows %d open files in a process; max_connections and pool_size need %d",
            *(allowed, wanted),
        )


# --- all of them ----------------------------------------------------------------------------------


class _Worker:
    """A process that serves, or is about to."""

    def __init__(
        self,
        settings: Settings,
        dsn: str,
        listener: socket.socket,
        rates: Rates,
        seat: Seat,
    ) -> None:
        self.seat = seat
        context = multiprocessing.get_context("fork")
        self.told, serves = context.Pipe(duplex=False)
        self.started_at = time.monotonic()
        self.process: ForkProcess = context.Process(
            target=_work, args=(settings, dsn, listener, rates, seat, serves), daemon=True
        )
        # Until the worker has handlers of its own, those of this process are not its to run.
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)
        serves.close()
        self.has_served = False

    def hear(self) -> None:
        """Note it if the worker has begun to take connections."""
        if not self.has_served and self.told.poll():
            try:
                self.told.recv_bytes()
                self.has_served = True
            except EOFError:
                pass  # it has ended


class Supervisor:
    """Keeps `settings.workers` processes serving.

    One that dies is replaced: at once, or a second after its start if it lived no longer. SIGHUP
    replaces them all, one after the other: a new one serves before an old one is told to end. They
    run the code and the settings that this process has.
    """

    def __init__(self, settings: Settings, dsn: str, listener: socket.socket) -> None:
        self._settings = settings
        self._given = (settings, dsn, listener, Rates(settings.rate_per_second))
        #: One more while a worker is replaced.
        self._seats = seats(settings.workers + 1)
        self._workers: list[_Worker] = []
        #: Of the workers, those that are to be replaced.
        self._old: list[_Worker] = []
        #: Told to end, each with the time when it is killed.
        self._leaving: list[tuple[_Worker, float]] = []
        self._start_at = 0.0
        self._is_to_restart = False
        self._had_terminal = os.isatty(_STANDARD_INPUT)

    def run(self, ready: Callable[[], None], look: Callable[[], None]) -> None:
        """Run until an exception ends it, then end the workers.

        `ready` is called once they are started, and `look` a few times a second.
        """
        signal.signal(signal.SIGHUP, self._hang_up)
        try:
            self._fill()
            ready()
            while True:
                connection.wait(self._awaited(), _LOOK_SECONDS)
                for worker in self._workers:
                    worker.hear()
                look()
                self._bury()
                self._replace()
                self._fill()
        finally:
            self._end()

    def _hang_up(self, _number: int, _frame: object) -> None:
        """It says that the terminal is closed, or else asks for a restart."""
        if self._had_terminal and not os.isatty(_STANDARD_INPUT):
            raise KeyboardInterrupt
        self._is_to_restart = True

    def _awaited(self) -> list[connection.Connection | int]:
        alive = [*self._workers, *(worker for worker, _ in self._leaving)]
        starting = [worker.told for worker in self._workers if not worker.has_served]
        return [*(worker.process.sentinel for worker in alive), *starting]

    def _bury(self) -> None:
        for worker in [one for one in self._workers if not one.process.is_alive()]:
            log.warning("worker %d ended with %s", worker.process.pid, worker.process.exitcode)
            self._workers.remove(worker)
            worker.seat.restarted()
            self._leave_seat(worker)
            self._start_at = max(self._start_at, worker.started_at + _SHORT_LIFE_SECONDS)
            if worker in self._old:
                self._old.remove(worker)
            elif self._old and not worker.has_served:
                log.error("no worker is replaced: a new one does not serve")
                self._old.clear()
        now = time.monotonic()
        for worker, until in self._leaving:
            if until < now:
                log.warning("worker %d does not end: it is killed", worker.process.pid)
                worker.process.kill()
        for worker, until in self._leaving.copy():
            if not worker.process.is_alive():
                self._leaving.remove((worker, until))
                self._leave_seat(worker)

    def _leave_seat(self, worker: _Worker) -> None:
        worker.seat.vacated()
        self._seats.append(worker.seat)

    def _replace(self) -> None:
        if self._is_to_restart:
            self._is_to_restart = False
            self._old = list(self._workers)
        is_one_more = len(self._workers) > self._settings.workers
        if self._old and is_one_more and all(worker.has_served for worker in self._workers):
            worker = self._old.pop(0)
            self._workers.remove(worker)
            self._leaving.append((worker, self._deadline()))
            worker.process.terminate()

    def _fill(self) -> None:
        # An old worker has left before the next new one starts: one more is all there are.
        one_more = bool(self._old) and not self._leaving
        missing = self._settings.workers + one_more - len(self._workers)
        if missing > 0 and self._start_at <= time.monotonic():
            self._workers += [_Worker(*self._given, self._seats.pop()) for _ in range(missing)]

    def _deadline(self) -> float:
        return time.monotonic() + _end_seconds(self._settings)

    def _end(self) -> None:
        deadline = self._deadline()
        leaving = [*self._workers, *(worker for worker, _ in self._leaving)]
        for worker in leaving:
            worker.process.terminate()
        for worker in leaving:
            worker.process.join(max(0, deadline - time.monotonic()))
            worker.process.kill()
