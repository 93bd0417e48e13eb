"""How bars are divided into buckets of the counts."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from audit.history.bar_parts import Part, parts_of
from audit.history.bars import AUTO, bars_between, zone_of

START = datetime(2026, 1, 1, tzinfo=UTC)
ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Asia/Kathmandu"]
#: The length of the shortest bucket of each grain.
SHORTEST = {
    None: timedelta(microseconds=1),
    "second": timedelta(seconds=1),
    "minute": timedelta(minutes=1),
    "hour": timedelta(hours=1),
    "day": timedelta(days=1),
    "month": timedelta(days=28),
    "year": timedelta(days=365),
}


def random_edges() -> list[datetime]:
    """Return edges in a time zone, of which the first and the last may be any time."""
    since = START + random.randint(-400, 400) * timedelta(days=1)
    since += random.choice([timedelta(0), timedelta(microseconds=random.randint(0, 10**11))])
    length = random.choice([timedelta(hours=2), timedelta(days=3), timedelta(days=900)])
    until = since + length * random.random()
    bars = bars_between(since, until, zone_of(random.choice(ZONES)), interval=AUTO, most=100)
    return [since, *bars.edges[1:-1], max(until, bars.edges[-2])]


def sum_of_signs(parts: list[Part], at: datetime) -> int:
    return sum(part.sign for part in parts if part.since <= at < part.until)


def test_the_parts_of_a_bar_add_up_to_it() -> None:
    for _ in range(200):
        edges = random_edges()
        parts = parts_of(edges)
        times = {edge for part in parts for edge in (part.since, part.until)}
        for bar, (start, end) in enumerate(pairwise(edges), 1):
            own = [part for part in parts if part.bar == bar]
            # Between these times, no part begins or ends.
            for at in times | {start}:
                assert sum_of_signs(own, at) == (start <= at < end)
        assert all(edges[0] <= part.since < part.until <= edges[-1] for part in parts)


@pytest.mark.parametrize(
    ("zone", "most"),
    [
        ("UTC", {"day": 1}),
        ("Europe/Berlin", {"day": 1, "hour": 2}),
        ("Asia/Kolkata", {"day": 1, "hour": 12, "minute": 60}),
        ("Asia/Kathmandu", {"day": 1, "hour": 12, "minute": 30}),
    ],
)
def test_a_day_in_a_time_zone_needs_few_buckets(zone: str, most: dict[str, int]) -> None:
    edges = bars_between(
        START, START + timedelta(days=28), zone_of(zone), interval="1d", most=40
    ).edges

    parts = [part for part in parts_of(edges) if part.bar == 14]

    used = {grain: sum(_buckets(part) for part in parts if part.grain == grain) for grain in most}
    assert most == used
    assert {part.grain for part in parts} == set(most)


def _buckets(part: Part) -> int:
    return (part.until - part.since) // SHORTEST[part.grain]


def test_bars_of_the_last_year_that_exists_have_parts() -> None:
    edges = [datetime(9999, month, 1, tzinfo=UTC) for month in range(1, 13)]

    parts = parts_of(edges)

    for bar, (start, end) in enumerate(pairwise(edges), 1):
        own = [part for part in parts if part.bar == bar]
        assert sum_of_signs(own, start) == 1
        assert sum_of_signs(own, end) == 0
