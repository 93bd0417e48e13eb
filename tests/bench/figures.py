"""What a run found: the form of its JSON file."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Self

from pydantic import BaseModel, ConfigDict


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class Figure(_Model):
    """One quantity, measured once in each round."""

    median: float
    lowest: float
    highest: float
    rounds: list[float]

    @classmethod
    def of(cls, values: Iterable[float]) -> Self:
        rounds = [_rounded(value) for value in values]
        median = _rounded(statistics.median(rounds))
        return cls(median=median, lowest=min(rounds), highest=max(rounds), rounds=rounds)

    @classmethod
    def if_any(cls, values: Iterable[float | None]) -> Self | None:
        """Return the figure of the rounds that gave a value; None where none did."""
        rounds = [value for value in values if value is not None]
        return cls.of(rounds) if rounds else None


def ratio(parts: Sequence[float], wholes: Sequence[float]) -> Figure:
    """Return how many times the second each first is, round by round."""
    return Figure.of(part / whole for part, whole in zip(parts, wholes, strict=True))


def mean_ratio(ratios: Iterable[Figure | None]) -> float | None:
    """Return the geometric mean of the medians; None without any."""
    medians = [one.median for one in ratios if one is not None]
    return _rounded(statistics.geometric_mean(medians)) if medians else None


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


class Machine(_Model):
    """Where it ran."""

    processor: str
    cores: int
    memory_gib: float
    system: str
    python: str
    postgresql: str


class Answers(_Model):
    """How one system answers one question, a page of 100."""

    per_second: Figure
    """The better of the following two."""
    per_second_16: Figure
    """Answers per second to 16 connections, each of which asks again at once."""
    per_second_64: Figure | None
    """The same with 64; None where a request would have waited for over 20 s."""
    p50_ms: Figure
    """Latency at 70 % of `per_second`, whether answers come or not; so are the next two."""
    p95_ms: Figure
    p99_ms: Figure
    system_cpu_ms: Figure
    """Processor time for each answer: of the service or the peer; then of PostgreSQL."""
    postgresql_cpu_ms: Figure
    client_cpu_ms: Figure


class Question(_Model):
    """One shape: the service, its peer and the limit, in turns."""

    total: int
    rows: int
    """On the page of 100."""
    service: Answers
    """Computes every answer."""
    repeated: Answers
    """Remembers its answers, and is always asked the same."""
    peer: Answers | None
    service_page_of_10: Figure
    """Answers per second to 16 connections."""
    limit: Figure
    """pgbench's transactions per second over 16 connections."""
    limit_page_of_10: Figure
    service_to_peer: Figure | None
    repeated_to_peer: Figure | None
    service_to_limit: Figure
    """At 16 connections each; so is the next."""
    service_to_limit_page_of_10: Figure


class Flatness(_Model):
    """Median latency of one shape, asked by one client, for each size of the history."""

    median_ms: dict[int, Figure]
    rows: dict[int, int]
    largest_to_smallest: Figure


class Recording(_Model):
    """Tasks recorded per second in one way."""

    way: str
    connections: int
    per_second: Figure
    to_copy: Figure
    """Against one COPY, over one connection, into the same table without triggers."""


class Repeated(_Model):
    """A question asked again on unchanged data, of one process, over 16 connections."""

    shape: str
    trivial_per_second: Figure
    page_per_second: Figure
    page_to_trivial: Figure
    not_modified_per_second: Figure | None
    """Answers 304; None where the service sends no ETag."""
    not_modified_to_trivial: Figure | None


class Statistic(_Model):
    """One statistic, asked by one client, for each size of the history; computed each time."""

    median_ms: dict[int, Figure]
    p95_ms: dict[int, Figure]
    largest_to_smallest: Figure


class Statistics(_Model):
    """What statistics take, and how often one is answered from the cache."""

    latency: dict[str, Statistic]
    repeated: Repeated


class Mixed(_Model):
    """A group of questions, asked again and again over 16 connections beside writes."""

    questions: str
    different: int
    """How many different questions take turns."""
    writes_due: int
    """Tasks that the writer records per second, one in each request."""
    writes_per_second: Figure | None
    """What became of them: less than is due if the service cannot record so many."""
    write_p99_ms: Figure | None
    per_second: Figure
    """Answers per second to the reader."""
    to_no_writes: Figure
    service_cores: Figure
    """How many cores each used; the clients are the reader and the writer."""
    postgresql_cores: Figure
    clients_cores: Figure


class Single(_Model):
    """Requests that each concern one task, and the same rows in plain tables by pgbench."""

    way: str
    connections: int
    per_second: Figure
    to_one_connection: Figure
    pgbench_per_second: Figure
    to_pgbench: Figure
    client_cores: Figure
    """How much of a core the client used."""


class Keyed(_Model):
    """One question, asked without an API key and with one, of two services."""

    question: str
    connections: int
    without_key_per_second: Figure
    with_key_per_second: Figure
    with_to_without: Figure
    without_key_cpu_us: Figure
    """Processor time of the service for each answer."""
    with_key_cpu_us: Figure


class Waited(_Model):
    """How long reads on an asynchronous standby waited for a write just acknowledged."""

    writers: int
    """Who recorded 20 tasks in each request meanwhile."""
    reads: Figure
    """In each round."""
    p50_ms: Figure
    """Of the wait alone, without the rest of the request."""
    p95_ms: Figure
    longest_ms: Figure


class ReadOn(_Model):
    """Pages of 100, computed, to 16 connections, of one kind of server."""

    server: str
    per_second: Figure
    postgresql_cpu_ms: Figure
    """Processor time of this server for each page."""


class RecordedTo(_Model):
    """POST of 100 tasks, 4 connections, with or without a standby."""

    standbys: int
    per_second: Figure
    primary_cpu_us: Figure
    """Processor time of PostgreSQL for each task, positions included."""
    standby_cpu_us: Figure | None


class Shared(_Model):
    """The same work for one server, and for a primary whose standbys compute the pages.

    Seconds of processor time, of all processes of a server or of the service.
    """

    standbys: int
    pages: int
    tasks: int
    """Recorded meanwhile, each by a POST."""
    primary_cpu: Figure
    standbys_cpu: list[Figure]
    service_cpu: Figure


class Replicas(_Model):
    """A primary and its standbys on one machine."""

    waited: list[Waited]
    read: list[ReadOn]
    recorded: list[RecordedTo]
    shared: list[Shared]


class Export(_Model):
    """Exports of all tasks in one format, and a page that others ask for, of one worker."""

    form: str
    tasks: int
    tasks_per_second: Figure
    """To one reader at full speed."""
    memory_mib: Figure
    """By how much the memory of the worker grew at most meanwhile."""
    slow_memory_mib: Figure
    """The same, with a reader at 200 kB/s."""
    alone_p50_ms: Figure
    """Latency of the page to one client: without an export, then beside one at full speed."""
    alone_p95_ms: Figure
    beside_p50_ms: Figure
    beside_p95_ms: Figure
    p50_beside_to_alone: Figure
    p95_beside_to_alone: Figure


class Comparison(_Model):
    """One figure of two checkouts, measured in turns."""

    name: str
    other: Figure
    this: Figure
    this_to_other: Figure


class Result(_Model):
    """A whole run; a part that was not asked for is None."""

    began_at: str
    machine: Machine
    tasks: int
    seconds: float
    rounds: int
    reading: dict[str, Question] | None = None
    service_to_peer: float | None = None
    """Geometric mean over all shapes; so is the next."""
    repeated_to_peer: float | None = None
    flatness: dict[str, Flatness] | None = None
    recording: list[Recording] | None = None
    repeated: Repeated | None = None
    statistics: Statistics | None = None
    mixed: list[Mixed] | None = None
    single: list[Single] | None = None
    keys: list[Keyed] | None = None
    replicas: Replicas | None = None
    export: list[Export] | None = None
