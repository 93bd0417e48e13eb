"""The supervisor: starts the workers, replaces those that end, and stops all in order."""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from multiprocessing import connection
from typing import Final

from audit.access.rates import Rates
from audit.process.worker import Shared, Worker, stop_seconds
from audit.settings import Settings
from audit.telemetry.metrics import seats

log = logging.getLogger("audit")

#: A worker that ends sooner than this after its start is not replaced at once.
_SHORT_LIFE_SECONDS: Final = 1
_CHECK_SECONDS: Final = 0.25
_STANDARD_INPUT: Final = 0


class Supervisor:
    """Keeps `settings.workers` worker processes running.

    A worker that ends is replaced at once, or a second after its start if it ended sooner. SIGHUP
    replaces all workers, one after the other; each new one serves before an old one is stopped. New
    workers run the code and the settings of this process.
    """

    def __init__(self, settings: Settings, dsn: str, listener: socket.socket) -> None:
        self._settings = settings
        self._shared = Shared(settings, dsn, listener, Rates(settings.rate_per_second))
        #: One seat more than workers, because a new worker starts before an old one stops.
        self._free_seats = seats(settings.workers + 1)
        self._workers: list[Worker] = []
        #: The workers that a restart has not replaced yet.
        self._outdated: list[Worker] = []
        #: Workers that have received SIGTERM, with the time at which each is killed.
        self._stopping: list[tuple[Worker, float]] = []
        #: No worker is started before this time.
        self._start_at = 0.0
        self._restart_requested = False
        self._had_terminal = os.isatty(_STANDARD_INPUT)

    def run(self, ready: Callable[[], None], check: Callable[[], None]) -> None:
        """Run the workers until an exception is raised, then stop them.

        `ready` is called after the first start of the workers, and `check` a few times a second.
        """
        signal.signal(signal.SIGHUP, self._handle_hangup)
        try:
            self._start_missing()
            ready()
            while True:
                connection.wait(self._events(), _CHECK_SECONDS)
                for worker in self._workers:
                    worker.check_ready()
                check()
                self._remove_ended()
                self._replace_one()
                self._start_missing()
        finally:
            self._stop_all()

    def _handle_hangup(self, _number: int, _frame: object) -> None:
        """Stop if the terminal was closed. Otherwise the signal asks for a restart."""
        if self._had_terminal and not os.isatty(_STANDARD_INPUT):
            raise KeyboardInterrupt
        self._restart_requested = True

    def _events(self) -> list[connection.Connection | int]:
        """Return what becomes readable when a worker ends or begins to serve."""
        running = [*self._workers, *(worker for worker, _ in self._stopping)]
        starting = [worker.ready_pipe for worker in self._workers if not worker.is_serving]
        return [*(worker.process.sentinel for worker in running), *starting]

    def _remove_ended(self) -> None:
        for worker in [each for each in self._workers if not each.process.is_alive()]:
            log.warning("worker %d ended with %s", worker.process.pid, worker.process.exitcode)
            self._workers.remove(worker)
            worker.seat.restarted()
            self._free_seat(worker)
            self._start_at = max(self._start_at, worker.started_at + _SHORT_LIFE_SECONDS)
            if worker in self._outdated:
                self._outdated.remove(worker)
            elif self._outdated and not worker.is_serving:
                log.error("the restart is cancelled: a new worker ended before it could serve")
                self._outdated.clear()
        now = time.monotonic()
        for worker, kill_at in self._stopping.copy():
            if not worker.process.is_alive():
                self._stopping.remove((worker, kill_at))
                self._free_seat(worker)
            elif kill_at < now:
                log.warning("worker %d does not stop and is killed", worker.process.pid)
                worker.process.kill()

    def _free_seat(self, worker: Worker) -> None:
        worker.seat.vacated()
        self._free_seats.append(worker.seat)

    def _replace_one(self) -> None:
        """Stop an outdated worker if the new worker in its place serves."""
        if self._restart_requested:
            self._restart_requested = False
            self._outdated = list(self._workers)
        has_extra = len(self._workers) > self._settings.workers
        if self._outdated and has_extra and all(worker.is_serving for worker in self._workers):
            worker = self._outdated.pop(0)
            self._workers.remove(worker)
            self._stopping.append((worker, self._kill_at()))
            worker.process.terminate()

    def _start_missing(self) -> None:
        # An outdated worker must end before the next new one starts: there is one seat to spare.
        extra = bool(self._outdated) and not self._stopping
        missing = self._settings.workers + extra - len(self._workers)
        if missing > 0 and self._start_at <= time.monotonic():
            self._workers += [Worker(self._shared, self._free_seats.pop()) for _ in range(missing)]

    def _kill_at(self) -> float:
        return time.monotonic() + stop_seconds(self._settings)

    def _stop_all(self) -> None:
        kill_at = self._kill_at()
        running = [*self._workers, *(worker for worker, _ in self._stopping)]
        for worker in running:
            worker.process.terminate()
        for worker in running:
            worker.process.join(max(0, kill_at - time.monotonic()))
            worker.process.kill()
