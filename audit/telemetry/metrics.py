"""Metrics of requests, statements and tasks for Prometheus.

The parent process shares memory with all workers before it forks. Every worker counts in its own
part of it, its seat. So any worker can return the sums, and the counts of a killed worker stay.
All series are known at the start, so clients cannot create new ones.

prometheus_client keeps the values of several processes in files, and even in one process it takes 5
to 12 % more of the time of a request (decision 34). It still writes the output.
"""

from __future__ import annotations

import mmap
import platform
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from importlib.metadata import version
from typing import Final, Literal, get_args

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from audit.settings import MOST_STANDBYS

#: The route of a request that has none.
UNMATCHED: Final = "unmatched"
#: The status of a request whose client has left, as in the log of nginx.
CLIENT_LEFT: Final = 499
#: BEGIN, COMMIT and ROLLBACK, which are not in `sql/`.
TRANSACTION: Final = "transaction"
_OTHER: Final = "other"

_METHODS: Final = ("GET", "HEAD", "POST", "PATCH", "PUT", "DELETE", "OPTIONS", _OTHER)
_STATUSES: Final = (*(status.value for status in HTTPStatus), CLIENT_LEFT, _OTHER)
#: Upper bounds, inclusive, in seconds.
_BOUNDS: Final = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
_LES: Final = (*(str(bound) for bound in _BOUNDS), "+Inf")
#: The sum of seconds, and the number of observations in each bucket.
_HISTOGRAM_CELLS: Final = 1 + len(_LES)
_SEAT_CELLS: Final = 65_536
#: The queues for connections, one for each kind of work.
LANES: Final = ("reading", "tallying", "writing")
#: What a standby is to a worker: it is in use, or out of use for one of these reasons.
StandbyState = Literal["in_use", "behind", "failed", "primary", "unsuitable"]
_STANDBY_STATES: Final = get_args(StandbyState)
_PRIMARY: Final = "primary"
#: The cells of a seat with current values: pool size, waiting requests, used connections, exports,
#: the start of the oldest export, queues, readers of the feed, standbys.
_GAUGES: Final = tuple(range(2, 8 + len(LANES) + MOST_STANDBYS))
_CELL_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class LogSize:
    """The size of the event log, and of the queue of events that have no position yet."""

    events: int
    bytes: int
    queued: int
    queue_bytes: int
    queued_seconds: float
    """The age of the oldest event in the queue; 0 if there is none."""


@dataclass(frozen=True, slots=True)
class Replication:
    """What standbys, slots and transactions keep a primary from removing."""

    snapshot_age: int
    """The age of the oldest snapshot or transaction, in transactions."""
    slot_xmin_age: int
    """The age of the rows that slots keep, in transactions; 0 if no slot keeps rows."""
    inactive_slots: int
    retained_bytes: int
    """The most WAL that a slot keeps."""
    standbys: Sequence[str] | None = None
    """The names of the standbys; None without one, or if the role may not see them."""
    lag_bytes: Sequence[int] | None = None
    lag_seconds: Sequence[float] | None = None


class Seat:
    """The part of the shared memory in which one worker counts."""

    def __init__(self, memory: mmap.mmap, index: int) -> None:
        cells = memoryview(memory).cast("d")
        self.all: Final = [
            cells[start : start + _SEAT_CELLS] for start in range(0, len(cells), _SEAT_CELLS)
        ]
        self.cells: Final = self.all[index]

    def restarted(self) -> None:
        """Count that the worker has ended and that another one will take the seat."""
        self.cells[0] += 1

    def vacated(self) -> None:
        """Clear the current values of a worker that has ended, and keep its counters."""
        for gauge in _GAUGES:
            self.cells[gauge] = 0


def seats(workers: int) -> list[Seat]:
    """Return a seat for each worker. Call this before the workers are forked."""
    memory = mmap.mmap(-1, workers * _SEAT_CELLS * _CELL_BYTES)
    return [Seat(memory, index) for index in range(workers)]


class Metrics:
    """Counts what one worker does, and returns the sums of all workers."""

    def __init__(
        self,
        routes: Iterable[str] = (),
        seat: Seat | None = None,
        statements: Iterable[str] = (),
        standbys: Iterable[str] = (),
    ) -> None:
        """`routes` are all path templates, and `statements` the names of all statements.

        `standbys` are the hosts and ports of all standbys. Without a seat, there is only one
        worker.
        """
        self._seat = seat or seats(1)[0]
        self._cells = self._seat.cells
        self._size = 1  # the first cell counts restarts
        self._folded_at = self._take(1)
        self._pool = self._take(1)
        self.waiting: Final = _Gauge(self._cells, self._take(1))
        self.in_use: Final = _Gauge(self._cells, self._take(1))
        self._exporting, self._exporting_since = self._take(1), self._take(1)
        lengths = {lane: _Gauge(self._cells, self._take(1)) for lane in LANES}
        self.feeds: Final = _Gauge(self._cells, self._take(1))
        standby_cells = range(start := self._take(MOST_STANDBYS), start + MOST_STANDBYS)
        #: Each cell has the number of a state, counted from 1; 0 if there is none.
        self._standbys = dict(zip(standbys, standby_cells, strict=False))
        self.queues: Final = {
            lane: Queue(self._cells, length, self._take(1 + _HISTOGRAM_CELLS))
            for lane, length in lengths.items()
        }
        self._fed = self._take(_HISTOGRAM_CELLS)
        self._recorded, self._duplicate = self._take(1), self._take(1)
        self._cached, self._computed, self._resets = (self._take(1) for _ in range(3))
        self._exports_complete, self._exports_cut, self._exported = (
            self._take(1) for _ in range(3)
        )
        self._reads = {name: self._take(1) for name in (_PRIMARY, *self._standbys)}
        names = (*statements, TRANSACTION)
        self._statements = {name: self._take(1 + _HISTOGRAM_CELLS) for name in names}
        self._requests = {
            route: self._take(_HISTOGRAM_CELLS + len(_METHODS) * len(_STATUSES))
            for route in dict.fromkeys((*routes, UNMATCHED))
        }
        self._seat.vacated()  # a killed worker may have left its gauges at any value
        if not self._cells[self._folded_at]:
            self.folded()

    def _take(self, cells: int) -> int:
        start = self._size
        self._size += cells
        if self._size > _SEAT_CELLS:
            raise ValueError("a seat is too small for this number of routes and statements")
        return start

    def request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count a request. Unknown routes count as `unmatched`, unknown methods as `other`."""
        start = self._requests.get(route) or self._requests[UNMATCHED]
        at = _METHOD_AT.get(method, _OTHER_METHOD) + _STATUS_AT.get(status, _OTHER_STATUS)
        _observe(self._cells, start, seconds)
        self._cells[start + _HISTOGRAM_CELLS + at] += 1

    def refused(self, status: int) -> None:
        """Count a refusal before the request was parsed."""
        self.request(UNMATCHED, "", status, 0)

    def statement(self, name: str, seconds: float, *, failed: bool) -> None:
        """Count a statement that has run."""
        start = self._statements[name]
        _observe(self._cells, start, seconds)
        if failed:
            self._cells[start + _HISTOGRAM_CELLS] += 1

    def pool(self, connections: int) -> None:
        """Set the size of the connection pool."""
        self._cells[self._pool] = connections

    def recorded(self, recorded: int, duplicates: int) -> None:
        """Count new and duplicate tasks of a request."""
        self._cells[self._recorded] += recorded
        self._cells[self._duplicate] += duplicates

    def answered(self, *, is_cached: bool) -> None:
        """Count the answer to a list request."""
        self._cells[self._cached if is_cached else self._computed] += 1

    def read_on(self, standby: str | None) -> None:
        """Count a query that ran on a standby, or on the primary if that is None."""
        if (cell := self._reads.get(standby or _PRIMARY)) is not None:
            self._cells[cell] += 1

    def standby(self, name: str, state: StandbyState) -> None:
        """Set what a standby is to this worker."""
        if (cell := self._standbys.get(name)) is not None:
            self._cells[cell] = 1 + _STANDBY_STATES.index(state)

    def cache_reset(self) -> None:
        """Count that no cached answer is valid any more."""
        self._cells[self._resets] += 1

    def fed(self, seconds: float) -> None:
        """Count that readers of the feed were woken for a change of this age."""
        _observe(self._cells, self._fed, seconds)

    def exporting(self, exports: int, since: float) -> None:
        """Set the number of exports that run, and when the first of them began; 0 without any."""
        self._cells[self._exporting] = exports
        self._cells[self._exporting_since] = since

    def exported(self, tasks: int, *, is_complete: bool) -> None:
        """Count an export that has ended."""
        self._cells[self._exports_complete if is_complete else self._exports_cut] += 1
        self._cells[self._exported] += tasks

    def folded(self) -> None:
        """Set the time of the last complete fold to now."""
        self._cells[self._folded_at] = time.time()

    def render(
        self,
        accept: str,
        deltas: int | None,
        log: LogSize | None = None,
        lag_seconds: float | None = None,
        replication: Replication | None = None,
    ) -> tuple[bytes, str]:
        """Return the metrics of all workers as text, and its content type.

        `deltas` is the number of events that the counts do not contain yet. It and `log` are None
        if the database did not answer. `lag_seconds` is None if the database is not a standby,
        and `replication` if it is not a primary.
        """
        registry = CollectorRegistry()
        of_database = (
            *_of_database(deltas),
            *_of_log(log),
            *_of_standby(lag_seconds),
            *_of_primary(replication),
        )
        registry.register(_Collected([*self._families(), *of_database]))
        encode, content_type = choose_encoder(accept)
        return encode(registry), content_type

    def _families(self) -> Iterator[Metric]:
        rows = [cells[: self._size].tolist() for cells in self._seat.all]
        total = [sum(column) for column in zip(*rows, strict=True)]

        build = GaugeMetricFamily(
            "task_audit_build_info", "Always 1.", labels=("version", "python")
        )
        build.add_metric((version("task-audit"), platform.python_version()), 1)
        yield build

        requests = CounterMetricFamily(
            "task_audit_http_requests",
            f"Finished requests. Status {CLIENT_LEFT} means that the client left early.",
            labels=("route", "method", "status"),
        )
        durations = HistogramMetricFamily(
            "task_audit_http_request_duration_seconds",
            "Time from the head of a request to its response, before it is sent.",
            labels=("route",),
        )
        for route, start in self._requests.items():
            _add_histogram(durations, route, total[start : start + _HISTOGRAM_CELLS])
            at = start + _HISTOGRAM_CELLS
            for method in _METHODS:
                for status in _STATUSES:
                    if total[at]:
                        requests.add_metric((route, method, str(status)), total[at])
                    at += 1
        yield requests
        yield durations

        ran = HistogramMetricFamily(
            "task_audit_statement_duration_seconds",
            "Time that the service waits for a statement, by its file in sql/.",
            labels=("statement",),
        )
        failures = CounterMetricFamily(
            "task_audit_statement_failures",
            "Statements that failed, timed out or were cancelled.",
            labels=("statement",),
        )
        for name, start in self._statements.items():
            _add_histogram(ran, name, total[start : start + _HISTOGRAM_CELLS])
            failures.add_metric((name,), total[start + _HISTOGRAM_CELLS])
        yield ran
        yield failures

        tasks = CounterMetricFamily(
            "task_audit_tasks",
            "Tasks in requests to record, by result.",
            labels=("result",),
        )
        tasks.add_metric(("recorded",), total[self._recorded])
        tasks.add_metric(("duplicate",), total[self._duplicate])
        yield tasks

        answers = CounterMetricFamily(
            "task_audit_answers",
            "Answers to list requests, by where they came from.",
            labels=("source",),
        )
        answers.add_metric(("cache",), total[self._cached])
        answers.add_metric(("database",), total[self._computed])
        yield answers
        yield CounterMetricFamily(
            "task_audit_cache_resets",
            "How often a worker could not tell what had changed, and dropped all cached answers.",
            value=total[self._resets],
        )

        yield GaugeMetricFamily(
            "task_audit_pool_connections",
            "Maximum number of connections to PostgreSQL of all workers.",
            value=total[self._pool],
        )
        yield GaugeMetricFamily(
            "task_audit_pool_in_use", "Connections in use.", value=total[self.in_use.at]
        )
        yield GaugeMetricFamily(
            "task_audit_pool_waiting",
            "Requests that wait for a connection.",
            value=total[self.waiting.at],
        )
        yield from self._queued(total)
        yield GaugeMetricFamily(
            "task_audit_feed_readers",
            "Open streams of changes, and requests that wait for changes.",
            value=total[self.feeds.at],
        )
        delays = HistogramMetricFamily(
            "task_audit_feed_delay_seconds",
            "Age of the oldest new change when a worker wakes the readers that wait for changes.",
        )
        _add_histogram(delays, None, total[self._fed : self._fed + _HISTOGRAM_CELLS])
        yield delays
        yield from self._of_sources(rows, total)
        yield from self._exports(rows, total)
        yield CounterMetricFamily(
            "task_audit_worker_restarts", "Workers that ended and were replaced.", value=total[0]
        )
        yield GaugeMetricFamily(
            "task_audit_count_deltas_lag_seconds",
            "Seconds since a fold of this server last left nothing to fold; 0 on a standby.",
            value=max(0.0, time.time() - max(row[self._folded_at] for row in rows)),
        )

    def _of_sources(
        self, rows: Sequence[Sequence[float]], total: Sequence[float]
    ) -> Iterator[Metric]:
        reads = CounterMetricFamily(
            "task_audit_reads",
            "Queries for lists and statistics, by the database server that they ran on.",
            labels=("server",),
        )
        for name, cell in self._reads.items():
            reads.add_metric((name,), total[cell])
        yield reads
        standbys = GaugeMetricFamily(
            "task_audit_standby_workers",
            "Workers that use a standby (in_use), and those that do not, by the reason.",
            labels=("standby", "state"),
        )
        for name, cell in self._standbys.items():
            for number, state in enumerate(_STANDBY_STATES, 1):
                standbys.add_metric((name, state), sum(row[cell] == number for row in rows))
        yield standbys

    def _exports(self, rows: Sequence[Sequence[float]], total: Sequence[float]) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "task_audit_exports_running", "Exports that run.", value=total[self._exporting]
        )
        since = min(filter(None, (row[self._exporting_since] for row in rows)), default=None)
        yield GaugeMetricFamily(
            "task_audit_export_age_seconds",
            "Time since the oldest export that runs began; 0 if none runs.",
            value=0 if since is None else max(0.0, time.time() - since),
        )
        exports = CounterMetricFamily(
            "task_audit_exports", "Exports that have ended, by result.", labels=("result",)
        )
        exports.add_metric(("complete",), total[self._exports_complete])
        exports.add_metric(("cut",), total[self._exports_cut])
        yield exports
        yield CounterMetricFamily(
            "task_audit_exported_tasks", "Tasks in exports.", value=total[self._exported]
        )

    def _queued(self, total: Sequence[float]) -> Iterator[Metric]:
        lengths = GaugeMetricFamily(
            "task_audit_queue_length",
            "Requests that wait in a queue.",
            labels=("queue",),
        )
        waits = HistogramMetricFamily(
            "task_audit_queue_wait_seconds",
            "Waiting time in a queue of requests that were not refused; 0 if a slot was free.",
            labels=("queue",),
        )
        refused = CounterMetricFamily(
            "task_audit_queue_refused",
            "Requests refused with 503 because their expected wait was over --queue-seconds.",
            labels=("queue",),
        )
        for lane, queue in self.queues.items():
            lengths.add_metric((lane,), total[queue.waiting.at])
            _add_histogram(waits, lane, total[queue.at : queue.at + _HISTOGRAM_CELLS])
            refused.add_metric((lane,), total[queue.at + _HISTOGRAM_CELLS])
        yield from (lengths, waits, refused)


class Queue:
    """The metrics of one queue."""

    def __init__(self, cells: memoryview[float], waiting: _Gauge, at: int) -> None:
        self.waiting = waiting
        self.at = at
        self._cells = cells

    def waited(self, seconds: float) -> None:
        """Count a request that got a slot."""
        _observe(self._cells, self.at, seconds)

    def refused(self) -> None:
        """Count a request that was refused."""
        self._cells[self.at + _HISTOGRAM_CELLS] += 1


def _observe(cells: memoryview[float], start: int, seconds: float) -> None:
    cells[start] += seconds
    cells[start + 1 + bisect_left(_BOUNDS, seconds)] += 1


class _Gauge:
    """A value that is one higher while a `with` block runs."""

    def __init__(self, cells: memoryview[float], at: int) -> None:
        self.at = at
        self._cells = cells

    def __enter__(self) -> None:
        self._cells[self.at] += 1

    def __exit__(self, *_: object) -> None:
        self._cells[self.at] -= 1


class _Collected(Collector):
    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Sequence[Metric]:
        return self._families


def _add_histogram(
    family: HistogramMetricFamily, label: str | None, cells: Sequence[float]
) -> None:
    seconds, *counts = cells
    buckets, cumulative = [], 0.0
    for le, count in zip(_LES, counts, strict=True):
        cumulative += count
        buckets.append((le, cumulative))
    family.add_metric(() if label is None else (label,), buckets, seconds)


def _of_database(deltas: int | None) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        "task_audit_database_up",
        "Whether the database answered this scrape within a second.",
        value=deltas is not None,
    )
    if deltas is not None:
        yield GaugeMetricFamily(
            "task_audit_count_deltas",
            "Events that the counts do not contain yet.",
            value=deltas,
        )


def _of_log(log: LogSize | None) -> Iterator[Metric]:
    if log is None:
        return
    yield CounterMetricFamily(
        "task_audit_log_events", "Events that have a position in the event log.", value=log.events
    )
    yield GaugeMetricFamily(
        "task_audit_log_bytes", "Size of these events on disk, with indexes.", value=log.bytes
    )
    yield GaugeMetricFamily(
        "task_audit_log_queue_length", "Events that have no position yet.", value=log.queued
    )
    yield GaugeMetricFamily(
        "task_audit_log_queue_bytes",
        "Size of the queue of these events on disk.",
        value=log.queue_bytes,
    )
    yield GaugeMetricFamily(
        "task_audit_log_queue_age_seconds",
        "Age of the oldest event that has no position; 0 if there is none.",
        value=log.queued_seconds,
    )


def _of_standby(lag_seconds: float | None) -> Iterator[Metric]:
    if lag_seconds is not None:
        yield GaugeMetricFamily(
            "task_audit_replay_lag_seconds",
            "How old the state is that queries on this standby see, at most.",
            value=lag_seconds,
        )


def _of_primary(replication: Replication | None) -> Iterator[Metric]:
    if replication is None:
        return
    yield GaugeMetricFamily(
        "task_audit_snapshot_age_transactions",
        "Age of the oldest snapshot or transaction on the primary that the role can see.",
        value=replication.snapshot_age,
    )
    yield GaugeMetricFamily(
        "task_audit_slot_xmin_age_transactions",
        "Age of the oldest rows that a replication slot keeps; 0 if none keeps rows.",
        value=replication.slot_xmin_age,
    )
    yield GaugeMetricFamily(
        "task_audit_slots_inactive",
        "Replication slots without a connection.",
        value=replication.inactive_slots,
    )
    yield GaugeMetricFamily(
        "task_audit_slot_wal_bytes",
        "The most WAL that a replication slot keeps.",
        value=replication.retained_bytes,
    )
    lag_bytes = GaugeMetricFamily(
        "task_audit_standby_lag_bytes",
        "WAL that a connected standby has not replayed, as the primary sees it.",
        labels=("standby",),
    )
    lag_seconds = GaugeMetricFamily(
        "task_audit_standby_lag_seconds",
        "Time until a connected standby has replayed a commit, as the primary sees it.",
        labels=("standby",),
    )
    for family, values in (
        (lag_bytes, replication.lag_bytes),
        (lag_seconds, replication.lag_seconds),
    ):
        for name, value in zip(replication.standbys or (), values or (), strict=True):
            family.add_metric((name,), value)
        yield family


_METHOD_AT: Final = {method: i * len(_STATUSES) for i, method in enumerate(_METHODS)}
_STATUS_AT: Final = {status: i for i, status in enumerate(_STATUSES)}
_OTHER_METHOD: Final = _METHOD_AT[_OTHER]
_OTHER_STATUS: Final = _STATUS_AT[_OTHER]
