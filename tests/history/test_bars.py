"""The edges of bars, on the clock and calendar of a time zone (S2)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo, available_timezones

import pytest

from audit.history.bars import AUTO, LENGTHS, TooManyBars, bars_between, zone_of

LONG = ("1d", "1w", "1mo", "1y")
#: Nights in which clocks change, and what is special about them.
NIGHTS = [
    ("America/New_York", "2026-03-08T07:00"),  # forward
    ("America/New_York", "2026-11-01T06:00"),  # back
    ("Europe/Berlin", "2026-03-29T01:00"),
    ("Europe/Berlin", "2026-10-25T01:00"),
    ("Australia/Lord_Howe", "2026-04-04T15:00"),  # back by half an hour
    ("Australia/Lord_Howe", "2026-10-03T15:30"),
    ("Asia/Kathmandu", "2026-05-01T00:00"),  # 5:45 from UTC
    ("Pacific/Apia", "2011-12-30T10:00"),  # 2011-12-30 does not exist
    ("America/Havana", "2026-11-01T05:00"),  # midnight comes twice
    ("America/Sao_Paulo", "2018-11-04T03:00"),  # midnight does not exist
    ("America/St_Johns", "2010-11-07T02:31"),  # back at one minute past midnight
    ("America/St_Johns", "2010-03-14T03:31"),
    ("Antarctica/Troll", "2026-03-29T01:00"),  # two hours
    ("UTC", "2026-01-01T00:00"),
]


def around(night: str) -> tuple[datetime, datetime]:
    at = datetime.fromisoformat(night).replace(tzinfo=UTC)
    return at - timedelta(hours=53, minutes=7), at + timedelta(hours=50, microseconds=11)


@pytest.mark.parametrize(("name", "night"), NIGHTS)
@pytest.mark.parametrize("interval", list(LENGTHS))
def test_bars_cover_the_window_and_their_edges_are_on_the_clock(
    name: str, night: str, interval: str
) -> None:
    since, until = around(night)
    zone = zone_of(name)

    edges = bars_between(since, until, zone, interval=interval, most=10_000).edges

    assert edges[0] <= since < edges[1]
    assert edges[-2] < until <= edges[-1]
    assert edges == sorted(set(edges))
    for edge in edges:
        local, before = edge.astimezone(zone), (edge - timedelta(seconds=1)).astimezone(zone)
        assert edge.tzinfo is UTC
        # Clocks show a start of the interval, or have skipped it in this second.
        skipped = local.utcoffset() != before.utcoffset()
        assert skipped or is_start(interval, local)


def is_start(interval: str, local: datetime) -> bool:
    minutes = local.hour * 60 + local.minute
    if interval not in LONG:
        return minutes % (LENGTHS[interval] // timedelta(minutes=1)) == 0 == local.second
    return (
        minutes == 0
        and (interval != "1w" or local.weekday() == 0)
        and (interval not in ("1mo", "1y") or local.day == 1)
        and (interval != "1y" or local.month == 1)
    )


@pytest.mark.parametrize(("name", "night"), NIGHTS)
def test_a_bar_of_a_day_holds_exactly_one_local_day(name: str, night: str) -> None:
    since, until = around(night)
    zone = zone_of(name)

    edges = bars_between(since, until, zone, interval="1d", most=10).edges

    dates = []
    for start, end in pairwise(edges):
        minutes = [
            (start + timedelta(minutes=n)).astimezone(zone).date()
            for n in range((end - start) // timedelta(minutes=1))
        ]
        # In St. John's clocks were set back over midnight: an hour of the day before comes again.
        dates.append(max(minutes))
        assert name == "America/St_Johns" or len(set(minutes)) == 1
    assert dates == sorted(set(dates))


@pytest.mark.parametrize(
    ("name", "night", "interval", "hours"),
    [
        ("Europe/Berlin", "2026-03-29", "1d", [23]),
        ("Europe/Berlin", "2026-10-25", "1d", [25]),
        ("Europe/Berlin", "2026-10-25", "1h", [1] * 25),
        ("Europe/Berlin", "2026-10-25", "3h", [4] + [3] * 7),
        ("Europe/Berlin", "2026-03-29", "6h", [5, 6, 6, 6]),
        ("America/New_York", "2026-11-01", "12h", [13, 12]),
        ("Australia/Lord_Howe", "2026-04-05", "1h", [1, 1.5] + [1] * 22),
        ("Australia/Lord_Howe", "2026-10-04", "1h", [1, 1, 0.5] + [1] * 21),
        ("Asia/Kathmandu", "2026-05-01", "1h", [1] * 24),
        ("America/Havana", "2026-11-01", "1d", [25]),
        ("America/Sao_Paulo", "2018-11-04", "1d", [23]),
    ],
)
def test_a_bar_over_a_change_of_clocks_is_as_long_as_it_is(
    name: str, night: str, interval: str, hours: list[float]
) -> None:
    zone = ZoneInfo(name)
    day = datetime.fromisoformat(night)
    # From a second after the start to a second before the end, so both are at the edges.
    since = day.replace(hour=1, tzinfo=zone).astimezone(UTC) - timedelta(minutes=59, seconds=59)
    if name == "America/Sao_Paulo":
        since += timedelta(hours=1)
    if name == "America/Havana":
        since -= timedelta(hours=1)
    until = (day + timedelta(days=1)).replace(tzinfo=zone).astimezone(UTC)

    edges = bars_between(since, until, zone, interval=interval, most=400).edges

    assert hours == [(end - start) / timedelta(hours=1) for start, end in pairwise(edges)]


def test_a_day_that_a_zone_skips_has_no_bar() -> None:
    zone = ZoneInfo("Pacific/Apia")
    since = datetime(2011, 12, 29, 12, tzinfo=UTC)

    edges = bars_between(since, since + timedelta(days=2), zone, interval="1d", most=10).edges

    assert [29, 31, 1, 2] == [edge.astimezone(zone).day for edge in edges]
    assert {timedelta(days=1)} == {end - start for start, end in pairwise(edges)}


def test_no_zone_is_off_a_quarter_of_an_hour_since_2000() -> None:
    """Bars of up to 15 minutes have the same edges in all time zones."""
    for name in available_timezones():
        zone = ZoneInfo(name)
        for month in range(0, 27 * 12, 3):
            at = datetime(2000 + month // 12, 1 + month % 12, 1, tzinfo=UTC).astimezone(zone)
            offset = at.utcoffset()
            assert offset is not None
            assert offset % timedelta(minutes=15) == timedelta(0), (name, at)


def test_auto_is_the_finest_interval_that_fits() -> None:
    since = datetime(2026, 11, 24, 10, tzinfo=UTC)

    def auto(length: timedelta, most: int = 60) -> tuple[str, int]:
        bars = bars_between(since, since + length, UTC, interval=AUTO, most=most)
        return bars.interval, len(bars.edges) - 1

    assert ("1m", 60) == auto(timedelta(hours=1))
    assert ("5m", 13) == auto(timedelta(hours=1, microseconds=1))
    assert ("1m", 1) == auto(timedelta(0))
    assert ("1h", 24) == auto(timedelta(days=1))
    assert ("3h", 57) == auto(timedelta(days=7))
    assert ("1d", 31) == auto(timedelta(days=30))
    assert ("1w", 53) == auto(timedelta(days=365))
    assert ("1d", 366) == auto(timedelta(days=365), most=400)
    assert ("1y", 2) == auto(timedelta(days=365), most=2)


def test_too_many_bars_are_refused_with_the_interval_that_fits() -> None:
    since = datetime(2026, 1, 1, tzinfo=UTC)

    def refusal(interval: str, days: int, most: int = 400) -> str:
        with pytest.raises(TooManyBars) as refused:
            bars_between(since, since + timedelta(days=days), UTC, interval=interval, most=most)
        return str(refused.value)

    assert refusal("1h", 365) == (
        "would be 8,760 buckets of 1h; at most 400: ask for 1d, or a shorter window"
    )
    assert "about 14,400,000 buckets of 1m; at most 400: ask for 1mo" in refusal("1m", 10_000)
    assert "ask for a shorter window" in refusal(AUTO, 365 * 500)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("Europe/berlin", "Europe/Berlin"),
        ("Berlin", "Europe/Berlin"),
        ("US/Easter", "US/Eastern"),
        ("../../etc/passwd", ""),
        ("", ""),
        ("CEST", "CET"),
        ("UTC+2", ""),
        ("x" * 60_000, ""),
    ],
    ids=range(8),
)
def test_an_unknown_time_zone_is_refused_with_the_nearest_names(name: str, nearest: str) -> None:
    with pytest.raises(ValueError, match="must be the IANA name of a time zone") as refused:
        zone_of(name)

    assert nearest in str(refused.value)
