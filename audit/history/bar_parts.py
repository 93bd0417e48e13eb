"""Divides bars of time into buckets of the counts: as few as possible, and at most some dozens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
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
#: Each grain, the finest first, with the next coarser one. None stands for the tasks themselves.
_COARSER: Final[dict[str | None, str]] = {
    None: "second",
    "second": "minute",
    "minute": "hour",
    "hour": "day",
    "day": "month",
    "month": "year",
}
_LAST: Final = datetime.max.replace(tzinfo=UTC)


class Part(NamedTuple):
    """Part of a bar: the buckets of a grain from `since` on and before `until`.

    They are in one bucket of the next coarser grain, which begins at `within`. The type `bar_part`
    of the database has the same members.
    """

    bar: int
    sign: int
    """1: the bar contains it. -1: another part of the bar reaches beyond the bar by this one."""
    grain: str | None
    """None: it is shorter than any bucket."""
    within: datetime
    since: datetime
    until: datetime


def parts_of(edges: Sequence[datetime]) -> list[Part]:
    """Return the parts of all bars between edges, which are times in UTC.

    Their sum is the number of tasks in a bar. No part reaches beyond the first and the last edge.
    """
    rounded = [_roundings(edge, edges[0], edges[-1]) for edge in edges]
    return [
        part
        for bar, (starts, ends) in enumerate(pairwise(rounded), 1)
        for part in _parts(bar, starts, ends)
    ]


def _roundings(edge: datetime, earliest: datetime, latest: datetime) -> list[datetime]:
    """Return an edge, and what it is when rounded to seconds, these to minutes, and so on to years.

    It is rounded to the nearest time in the window. The list ends where there is none.
    """
    times = [edge]
    for grain in _COARSER.values():
        floor = _floor(grain, edge)
        if floor != edge:
            near = (floor, _after(grain, floor))
            fitting = [time for time in near if earliest <= time <= latest]
            if not fitting:
                break
            edge = min(fitting, key=lambda time: abs(time - edge))
        times.append(edge)
    return times


def _parts(bar: int, starts: Sequence[datetime], ends: Sequence[datetime]) -> Iterator[Part]:
    """Yield the parts of a bar between two edges with their roundings, the finest first.

    At each grain, the parts between an edge and the rounded one are added or subtracted, and the
    rest is divided further. So a day in Berlin is the day in UTC, with the last hour of the day
    before, and without its own last hour.
    """
    grain: str | None = None
    since, until = starts[0], ends[0]
    for first, last in zip(starts[1:], ends[1:], strict=False):
        if abs(first - since) + abs(until - last) >= until - since:
            # It would make more work than it saves.
            break
        if first != since:
            yield _part(bar, grain, since, first)
        if last != until:
            yield _part(bar, grain, last, until)
        grain, since, until = _COARSER[grain], first, last
    if grain == "year":
        yield Part(bar, 1, grain, since, since, until)
        return
    while since < until:
        end = min(until, _after(_COARSER[grain], _floor(_COARSER[grain], since)))
        yield _part(bar, grain, since, end)
        since = end


def _part(bar: int, grain: str | None, start: datetime, end: datetime) -> Part:
    """Return the part from `start` to `end`, which is subtracted if `end` is the earlier one."""
    since, until = min(start, end), max(start, end)
    within = _floor(_COARSER[grain], since)
    return Part(bar, 1 if start < end else -1, grain, within, since, until)


def _floor(grain: str, time: datetime) -> datetime:
    return time.replace(**_STARTS[grain])  # type: ignore[arg-type]


def _after(grain: str, start: datetime) -> datetime:
    """Return the end of the bucket that begins at `start`; no task is later than the last one."""
    try:
        return _floor(grain, start + _LONGEST[grain])
    except OverflowError:
        return _LAST
