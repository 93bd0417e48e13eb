"""Divides bars of time into buckets of the counts: as few as possible, and at most some dozens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Final, NamedTuple

#: What the start of a bucket has of each member of a time that is finer than the grain.
_STARTS: Final[dict[str, dict[str, int]]] = {
    "second": {"microsecond": 0},
    "minute": {"second": 0, "microsecond": 0},
    "hour": {"minute": 0, "second": 0, "microsecond": 0},
    "day": {"hour": 0, "minute": 0, "second": 0, "microsecond": 0},
    "month": {"day": 1, "hour": 0, "minute": 0, "second": 0, "microsecond": 0},
    "year": {"month": 1, "day": 1, "hour": 0, "minute": 0, "second": 0, "microsecond": 0},
}
_LONGEST: Final = {
    "second": timedelta(seconds=1),
    "minute": timedelta(minutes=1),
    "hour": timedelta(hours=1),
    "day": timedelta(days=1),
    "month": timedelta(days=31),
    "year": timedelta(days=366),
}
#: Each grain with the next coarser one. The first stands for the tasks themselves.
_GRAINS: Final = (
    (None, "second"),
    ("second", "minute"),
    ("minute", "hour"),
    ("hour", "day"),
    ("day", "month"),
    ("month", "year"),
)


class Part(NamedTuple):
    """Part of a bar: the buckets of a grain from `since` on and before `until`.

    They are in one bucket of the next coarser grain, which begins at `within`. The type `bar_part`
    of the database has the same members.
    """

    bar: int
    grain: str | None
    """None: it is shorter than any bucket."""
    within: datetime
    since: datetime
    until: datetime


def parts_of(edges: Sequence[datetime]) -> list[Part]:
    """Return the parts of all bars between edges, which are times in UTC."""
    return [
        Part(bar, *part)
        for bar, (since, until) in enumerate(pairwise(edges), 1)
        for part in _parts(since, until)
    ]


def _parts(
    since: datetime, until: datetime
) -> Iterator[tuple[str | None, datetime, datetime, datetime]]:
    """Yield the parts of a bar: from both ends to the coarser buckets that lie within it."""
    for grain, coarser in _GRAINS:
        first, last = _ceiling(coarser, since), _floor(coarser, until)
        if first > last:
            if since < until:
                yield grain, _floor(coarser, since), since, until
            return
        if since < first:
            yield grain, _floor(coarser, since), since, first
        if last < until:
            yield grain, last, last, until
        since, until = first, last
    if since < until:
        yield "year", since, since, until


def _floor(grain: str, time: datetime) -> datetime:
    return time.replace(**_STARTS[grain])  # type: ignore[arg-type]


def _ceiling(grain: str, time: datetime) -> datetime:
    floor = _floor(grain, time)
    return floor if floor == time else _floor(grain, floor + _LONGEST[grain])
