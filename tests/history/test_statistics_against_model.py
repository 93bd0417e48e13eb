"""Statistics against a naive model of themselves, while others write, and counts are folded (S1).

Each round opens a transaction with one snapshot, reads all tasks in it, and then asks random
questions in the same transaction. So the model knows exactly what the answers may count.
"""

from __future__ import annotations

import asyncio
import json
import random
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import pytest

from audit.errors import Invalid
from audit.history import facet_counts
from audit.history.asking import Reading
from audit.history.bars import LENGTHS
from audit.history.query import AuditQuery, parse_arguments
from audit.history.service import AuditService
from audit.history.sources import Sources
from audit.history.states import State
from audit.history.statistics import Statistics
from audit.history.statistics_body import (
    BucketDurations,
    Histogram,
    IntentDurations,
    Percentiles,
)
from audit.history.statistics_query import (
    FACETS,
    DurationsQuery,
    FacetsQuery,
    HistogramQuery,
)
from audit.postgres.database import Database
from audit.settings import Settings
from audit.telemetry.metrics import Metrics
from tests.conftest import ago, execute, task
from tests.history.conftest import SPLIT_ABOVE

if TYPE_CHECKING:
    from audit.postgres.pool import Connection

ROUNDS, QUESTIONS = 50, 40
SERVICES = ["a", "b", "c/d", "é"]
INTENTS = ["deploy", "rotate"]
PEOPLE = ["ada", "alan"]
PROJECTS = [str(uuid.UUID(int=n)) for n in (1, 2)]
ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"]
SETTINGS = Settings(pool_size=8)
#: A night in which clocks are set back in Berlin, and hours before and after.
NIGHT = datetime(2025, 10, 26, 1, tzinfo=UTC)
COLUMNS = (
    "created_at, completed_at, status::text, services_touched, intent, created_by,"
    " project_id::text, outcome"
)


class OneSnapshot(Database):
    """Gives out the same connection again and again. It has a transaction open."""

    def __init__(self, database: Database, connection: Connection) -> None:
        super().__init__(database.pool, SETTINGS, Metrics())
        self._connection = connection

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        yield self._connection


def random_time() -> datetime:
    """Return a time near the night, or near now, often at an edge of buckets."""
    at = random.choice([NIGHT, NIGHT, ago().replace(microsecond=0)])
    step = random.choice([timedelta(hours=9), timedelta(hours=1), timedelta(minutes=1)])
    at += random.randint(-40, 40) * step
    at += random.choice([timedelta(0), timedelta(microseconds=random.randint(-1, 1))])
    return min(at, ago(hours=-23))


def random_task() -> dict[str, Any]:
    outcome = {"action_type": random.choice([*INTENTS, None]), "n": random.randint(1, 2)}
    return task(
        created_at=random_time(),
        status=random.choice(list(State)),
        services_touched=random.sample(SERVICES, random.randint(0, 3)),
        outcome=random.choice([None, outcome, outcome, outcome]),
        completed_at=random.choice([None, random_time()]),
        created_by=random.choice([None, *PEOPLE]),
        project_id=random.choice([None, *PROJECTS]),
    )


def random_filters() -> dict[str, Any]:
    filters: dict[str, Any] = {
        "status": random.sample(list(State), random.randint(1, 3)),
        "service": random.sample(SERVICES, random.choice([1, 1, 1, 2])),
        "intent": random.sample([*INTENTS, "none"], random.randint(1, 2)),
        "created_by": random.choice(PEOPLE),
        "project_id": random.choice(PROJECTS),
        "outcome": json.dumps({"n": random.randint(1, 2)}),
    }
    names = random.sample(list(filters), random.choice([0, 0, 1, 1, 2, 3]))
    if random.random() < 0.6:
        names = [name for name in names if name in ("status", "service", "intent")]
    since, until = sorted([random_time(), random_time()])
    windows: list[dict[str, Any]] = [
        {},
        {"since": since},
        {"until": until},
        {"since": since, "until": until},
        {"since": since, "until": until},
        {"last": random.choice(["15m", "24h", "400h", "7d"])},
    ]
    window = random.choice(windows)
    return {**{name: filters[name] for name in names}, **window}


def matching(rows: list[Any], asked: dict[str, Any], since: datetime | None) -> list[Any]:
    """Return the rows that match the filters, in the order of their times."""
    return [
        row
        for row in rows
        if ("status" not in asked or row["status"] in asked["status"])
        and ("service" not in asked or set(asked["service"]) <= set(row["services_touched"]))
        and ("intent" not in asked or row["intent"] in asked["intent"])
        and ("created_by" not in asked or row["created_by"] == asked["created_by"])
        and ("project_id" not in asked or row["project_id"] == asked["project_id"])
        and (
            "outcome" not in asked
            or (
                row["outcome"]
                and json.loads(row["outcome"])["n"] == json.loads(asked["outcome"])["n"]
            )
        )
        and (since is None or row["created_at"] >= since)
        and ("until" not in asked or row["created_at"] < asked["until"])
    ]


def slot(at: datetime, interval: str, zone: ZoneInfo) -> Any:
    """Return what tells apart the buckets of an interval, by the local time."""
    local = at.astimezone(zone)
    if interval in ("1m", "5m", "15m"):
        return at.timestamp() // LENGTHS[interval].total_seconds()
    if interval in ("1h", "3h", "6h", "12h"):
        hours = int(interval[:-1])
        # When clocks are set back by an hour, they show it twice. By half an hour, it is longer.
        again = local.fold if interval == "1h" and zone.key != "Australia/Lord_Howe" else 0
        return (local.date(), local.hour // hours, again)
    return {
        "1d": local.date(),
        "1w": local.isocalendar()[:2],
        "1mo": (local.year, local.month),
        "1y": local.year,
    }[interval]


async def check_histogram(
    statistics: Statistics, reading: Reading, rows: list[Any], clock: datetime
) -> None:
    asked = random_filters()
    by = {
        "interval": random.choice(["auto", "auto", *LENGTHS]),
        "tz": random.choice(ZONES),
    }
    query = parse_arguments(HistogramQuery, {**asked, **by})
    since = query.window_start(clock)
    tasks = [(row["created_at"], State(row["status"])) for row in matching(rows, asked, since)]

    try:
        answer = (await statistics.histogram(query, clock=clock)).body
    except Invalid:  # would be more than 400 buckets
        query = query.model_copy(update={"interval": "auto"})
        answer = (await statistics.histogram(query, clock=clock)).body
    page = await reading.list_tasks(parse_arguments(AuditQuery, {**asked, "limit": 1}), clock=clock)

    assert len(tasks) == answer.total == page.total
    assert Counter(state for _, state in tasks) == +Counter(answer.status)
    buckets = answer.buckets
    for one, following in pairwise(buckets):
        assert one.end == following.start
    place = 0
    slots: list[Any] = []
    for bucket in buckets:
        held: Counter[State] = Counter()
        found = set()
        while place < len(tasks) and tasks[place][0] < bucket.end:
            assert tasks[place][0] >= bucket.start
            held[tasks[place][1]] += 1
            found.add(slot(tasks[place][0], answer.interval, ZoneInfo(query.tz)))
            place += 1
        assert held == +Counter(bucket.status)
        assert held.total() == bucket.total
        assert len(found) <= 1
        slots += found
    assert len(set(slots)) == len(slots)
    assert place == len(tasks)
    check_window(answer, asked, since, clock, [at for at, _ in tasks])


def check_window(
    answer: Histogram,
    asked: dict[str, Any],
    since: datetime | None,
    clock: datetime,
    times: list[datetime],
) -> None:
    if since is None and not times:
        assert (answer.buckets, answer.since, answer.until) == ([], None, None)
        return
    first, last = answer.buckets[0], answer.buckets[-1]
    begun = since or times[0]
    end = asked.get("until") or max([clock if since else times[0], begun, *times], default=begun)
    assert first.start <= begun < first.end
    assert last.start <= end <= last.end
    assert answer.since == (since or first.start)
    if "until" in asked:
        assert answer.until == asked["until"]
    assert first.partial == (first.start < (since or first.start) or first.end > answer.until)  # type: ignore[operator]


def most_frequent(values: list[Any]) -> list[tuple[str | None, int]]:
    return sorted(
        Counter(values).items(), key=lambda each: (-each[1], each[0] is None, each[0] or "")
    )


async def check_facets(
    statistics: Statistics, reading: Reading, rows: list[Any], clock: datetime
) -> None:
    asked = random_filters()
    facets = random.sample(FACETS, random.randint(1, 3))
    top = random.choice([1, 2, 3, 10])
    query = parse_arguments(FacetsQuery, {**asked, "facet": facets, "top": top})
    since = query.window_start(clock)

    answer = (await statistics.facets(query, clock=clock)).body
    page = await reading.list_tasks(parse_arguments(AuditQuery, {**asked, "limit": 1}), clock=clock)

    assert len(matching(rows, asked, since)) == answer.total == page.total
    assert facets == list(answer.facets)
    for facet, found in answer.facets.items():
        others = asked if facet == "service" else without(asked, facet)
        tasks = matching(rows, others, since)
        values: list[Any] = [row[facet] for row in tasks if facet != "service"]
        if facet == "service":
            values = [service for row in tasks for service in row["services_touched"]]
        expected = most_frequent(values)
        assert found.values is not None
        assert expected[:top] == [(each.value, each.total) for each in found.values], facet
        assert found.more == (len(expected) > top)


def without(asked: dict[str, Any], name: str) -> dict[str, Any]:
    return {other: value for other, value in asked.items() if other != name}


async def check_durations(
    statistics: Statistics, reading: Reading, rows: list[Any], clock: datetime
) -> None:
    asked = random_filters()
    by = random.choice(["none", "intent", "interval"])
    tz = {"tz": random.choice(ZONES)} if by == "interval" else {}
    query = parse_arguments(DurationsQuery, {**asked, "by": by, **tz})
    tasks = matching(rows, asked, query.window_start(clock))
    ended = [
        row for row in tasks if row["status"] in ("completed", "failed") and row["completed_at"]
    ]

    answer = (await statistics.durations(query, clock=clock)).body

    assert percentiles(ended) == shown(answer)
    assert len(tasks) == answer.tasks + answer.unfinished
    assert answer.negative == sum(row["completed_at"] < row["created_at"] for row in ended)
    if by == "intent":
        intents = most_frequent([row["intent"] for row in ended])
        assert [intent for intent, _ in intents] == [
            group.value for group in answer.groups if isinstance(group, IntentDurations)
        ]
        for (intent, _), group in zip(intents, answer.groups, strict=True):
            assert percentiles([row for row in ended if row["intent"] == intent]) == shown(group)
    if by == "interval":
        assert sum(group.tasks for group in answer.groups) == len(ended)
        for group in answer.groups:
            assert isinstance(group, BucketDurations)
            held = [row for row in ended if group.start <= row["created_at"] < group.end]
            assert percentiles(held) == shown(group)


def percentiles(ended: list[Any]) -> list[float | None]:
    seconds = sorted((row["completed_at"] - row["created_at"]).total_seconds() for row in ended)
    if not seconds:
        return [None] * 5
    return [
        round(seconds[max(0, -(-len(seconds) * percent // 100) - 1)], 6)
        for percent in (50, 90, 95, 99, 100)
    ]


def shown(durations: Percentiles) -> list[float | None]:
    return [durations.p50, durations.p90, durations.p95, durations.p99, durations.max]


async def write(service: AuditService) -> None:
    """Record tasks, and move them on."""
    open_tasks: list[str] = []
    while True:
        tasks = [random_task() for _ in range(random.randint(1, 4))]
        await service.record(tasks)
        open_tasks += [one["task_id"] for one in tasks if not State(one["status"]).is_terminal]
        if open_tasks and random.random() < 0.7:
            changed = open_tasks.pop(random.randrange(len(open_tasks)))
            services = random.sample(SERVICES, random.randint(0, 3))
            await service.update(changed, {"status": "failed", "services_touched": services})
        await asyncio.sleep(random.uniform(0.1, 0.6))


async def fold(service: AuditService) -> None:
    while True:
        await (
            service.upkeep.fold_counts()
            if random.random() < 0.7
            else service.upkeep.sequence_events()
        )
        await asyncio.sleep(random.uniform(0.05, 0.4))


@asynccontextmanager
async def working(service: AuditService) -> AsyncIterator[None]:
    """Write and fold while the block runs, and raise what failed."""
    work = [asyncio.create_task(write(service)) for _ in range(4)]
    work.append(asyncio.create_task(fold(service)))
    try:
        yield
    finally:
        for each in work:
            each.cancel()
        failures = await asyncio.gather(*work, return_exceptions=True)
    assert {asyncio.CancelledError} == {type(failure) for failure in failures}, failures


async def test_statistics_equal_the_model_while_others_write(
    fresh: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(fresh, SPLIT_ABOVE.format(3))
    async with AuditService.open(fresh, SETTINGS) as service:
        await service.record([random_task() for _ in range(500)])
        async with working(service):
            for _ in range(ROUNDS):
                # With so few tasks, services would never be counted one by one.
                monkeypatch.setattr(facet_counts, "_TASKS_OF_BOUNDS", random.choice([0, 20_000]))
                monkeypatch.setattr(facet_counts, "_TASKS_OF_SERVICE", random.choice([1, 200]))
                monkeypatch.setattr(facet_counts, "_FEW_SERVICES", random.choice([1, 16]))
                await one_round(service)
        assert await service.upkeep.check_counts() == []


async def one_round(service: AuditService) -> None:
    pool = service.database.pool
    async with (
        pool.acquire() as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        rows = await connection.fetch(f"SELECT {COLUMNS} FROM tasks ORDER BY created_at")
        clock = await connection.fetchval("SELECT date_trunc('second', now())")
        database = OneSnapshot(service.database, connection)
        sources = Sources(database, {}, SETTINGS, Metrics())
        reading = Reading(database, SETTINGS, sources)
        statistics = Statistics(sources, reading, SETTINGS)
        for _ in range(QUESTIONS):
            check = random.choice([check_histogram, check_histogram, check_facets, check_durations])
            await check(statistics, reading, rows, clock)
