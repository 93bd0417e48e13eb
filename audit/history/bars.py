"""The bars of a histogram: spans of time whose edges lie on the clock and calendar of a time zone.

All edges are computed here, by the time zones of Python. PostgreSQL gets them as times and needs no
time zone, so it does not matter whether its time zones are of another release.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from difflib import get_close_matches
from functools import cache
from itertools import pairwise
from typing import Final
from zoneinfo import ZoneInfo, available_timezones

MOST_BARS: Final = 400
AUTO: Final = "auto"
#: The intervals of less than a day, the finest first. Those of hours count from local midnight.
_SHORT: Final = {
    "1m": timedelta(minutes=1),
    "5m": timedelta(minutes=5),
    "15m": timedelta(minutes=15),
    "1h": timedelta(hours=1),
    "3h": timedelta(hours=3),
    "6h": timedelta(hours=6),
    "12h": timedelta(hours=12),
}
#: The intervals of whole days, by their usual length.
_LONG: Final = {
    "1d": timedelta(days=1),
    "1w": timedelta(days=7),
    "1mo": timedelta(days=30),
    "1y": timedelta(days=365),
}
LENGTHS: Final = _SHORT | _LONG
#: Every time zone has been this number of minutes or a multiple of it from UTC since 2000, so
#: intervals up to this length have the same edges in every time zone.
_OFFSET_STEP: Final = timedelta(minutes=15)
_HOUR: Final = timedelta(hours=1)
_SECOND: Final = timedelta(seconds=1)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LONGEST_NAME: Final = 64
#: A window of more bars than this is described by an estimate.
_MOST_COUNTED: Final = 20_000


@dataclass(frozen=True, slots=True)
class Bars:
    """Consecutive bars that cover a window of time. Those at its ends may reach beyond it."""

    interval: str
    edges: list[datetime]
    """The start of each bar, and the end of the last one."""


class TooManyBars(ValueError):
    """The window has too many bars. The text says how many, and which interval would fit."""


@cache
def _names() -> dict[str, str]:
    """Return all names of time zones, by what they are in lower case."""
    return {name.lower(): name for name in sorted(available_timezones() | {"UTC"})}


def zone_of(name: str) -> tzinfo:
    """Return the time zone of an IANA name.

    Raises:
        ValueError: there is no such time zone.
    """
    if name == "UTC":
        return UTC
    names = _names()
    if names.get(name.lower()) == name:
        return ZoneInfo(name)
    close = get_close_matches(name[:_LONGEST_NAME].lower(), names, n=3, cutoff=0.5)
    nearest = [names[each] for each in close]
    hint = f"; the nearest names are {', '.join(nearest)}" if nearest else ""
    raise ValueError(f"must be the IANA name of a time zone, such as Europe/Berlin{hint}")


def bars_between(
    since: datetime, until: datetime, zone: tzinfo, *, interval: str, most: int
) -> Bars:
    """Return the bars that cover a window of time.

    The interval `auto` is the finest one with at most `most` bars.

    Raises:
        TooManyBars: the window has more than `most` bars.
        OverflowError: a bar begins or ends outside of the years 1 to 9999.
    """
    for each in LENGTHS if interval == AUTO else [interval]:
        # No bar is longer than twice the usual length of its interval.
        if (until - since) // (2 * LENGTHS[each]) > most:
            continue
        starts = _starts(each, since, until, zone, most)
        if len(starts) <= most + 1:
            return Bars(each, starts)
    if interval == AUTO:
        raise TooManyBars(f"would be more than {most:,} buckets of 1y: ask for a shorter window")
    raise TooManyBars(_advice(interval, since, until, zone, most))


def _advice(interval: str, since: datetime, until: datetime, zone: tzinfo, most: int) -> str:
    estimate = -((since - until) // LENGTHS[interval])
    number = f"about {estimate:,}"
    if estimate <= _MOST_COUNTED:
        number = f"{len(_starts(interval, since, until, zone, _MOST_COUNTED)) - 1:,}"
    try:
        fitting = bars_between(since, until, zone, interval=AUTO, most=most).interval
    except TooManyBars:
        fitting = ""
    hint = f"ask for {fitting}, or a shorter window" if fitting else "ask for a shorter window"
    return f"would be {number} buckets of {interval}; at most {most}: {hint}"


def _starts(
    interval: str, since: datetime, until: datetime, zone: tzinfo, most: int
) -> list[datetime]:
    """Return the starts of the bars from the one that holds `since`, up to the end of the last one.

    There may be more than one of each after `until` only if there are more than `most`.
    """
    last = max(until, since + timedelta(microseconds=1))
    starts: list[datetime] = []
    for start in _starts_from(interval, since, zone):
        if start <= since:
            starts = [start]
        elif start > starts[-1]:  # otherwise the day is one that the time zone skips
            starts.append(start)
        if start >= last or len(starts) > most + 1:
            break
    return starts


def _starts_from(interval: str, since: datetime, zone: tzinfo) -> Iterator[datetime]:
    """Yield the starts of bars in ascending order without end. The first is not after `since`."""
    step = LENGTHS[interval]
    if step <= _OFFSET_STEP or (zone is UTC and step < _LONG["1w"]):
        start = since - (since - _EPOCH) % step
        while True:
            yield start
            start += step
    else:
        yield from _local_starts(interval, since, zone)


def _local_starts(interval: str, since: datetime, zone: tzinfo) -> Iterator[datetime]:
    """Yield the starts of bars by the clock and calendar of a time zone."""
    local = since.astimezone(zone).replace(tzinfo=None)
    # A day earlier, because clocks may be set back over the start of a bar.
    days = _days_from(interval, local - timedelta(days=1))
    step = _SHORT.get(interval)
    for day, following in pairwise(days):
        if step is None:
            starts = [_first_time(day, zone)]
        else:
            walls = [day + n * step for n in range((following - day) // step)]
            starts = [_first_time(wall, zone) for wall in walls]
            if step == _HOUR:
                # When clocks are set back, they show an hour twice. Each is a bar of its own.
                starts += [again for wall in walls if (again := _second_time(wall, zone))]
            starts = sorted(set(starts))
        yield from starts


def _days_from(interval: str, local: datetime) -> Iterator[datetime]:
    """Yield the midnights at which bars of whole days begin, or each one for shorter bars."""
    day = local.replace(hour=0, minute=0, second=0, microsecond=0)
    if interval == "1y":
        day = day.replace(month=1, day=1)
    elif interval == "1mo":
        day = day.replace(day=1)
    elif interval == "1w":
        day -= timedelta(days=day.weekday())
    while True:
        yield day
        if interval == "1y":
            day = day.replace(year=day.year + 1)
        elif interval == "1mo":
            day = (day + timedelta(days=31)).replace(day=1)
        else:
            day += _LONG.get(interval, _LONG["1d"])


def _first_time(wall: datetime, zone: tzinfo) -> datetime:
    """Return the first time at which clocks show `wall`, or a later time if they skip it."""
    earlier = wall.replace(tzinfo=zone, fold=0).astimezone(UTC)
    if earlier.astimezone(zone).replace(tzinfo=None) == wall:
        return earlier
    # Clocks skip it: they were set forward between these two times.
    first = wall.replace(tzinfo=zone, fold=1).astimezone(UTC)
    seconds = range((earlier - first) // _SECOND + 1)
    place = bisect_right(
        seconds,
        wall - timedelta(microseconds=1),
        key=lambda n: (first + n * _SECOND).astimezone(zone).replace(tzinfo=None),
    )
    return first + place * _SECOND


def _second_time(wall: datetime, zone: tzinfo) -> datetime | None:
    """Return the second time at which clocks show `wall`; None if they show it at most once."""
    first, second = (wall.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
    return second if second > first else None
