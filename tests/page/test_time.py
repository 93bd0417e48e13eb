"""Times of the page: the same clock as Python's, in any zone, to the microsecond."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from playwright.async_api import Page

from tests.page.conftest import Opener

ZONES = ["UTC", "America/New_York", "Europe/Berlin", "Asia/Kathmandu", "Australia/Lord_Howe"]


async def call(page: Page, module: str, expression: str, given: Any) -> Any:
    """Return the value of an expression, in which `m` is a module of the page."""
    main = "document.querySelector('script[type=module]').src"
    return await page.evaluate(
        f"""async (given) => {{
          const m = await import({main}.replace("main.js", "{module}"));
          return {expression};
        }}""",
        given,
    )


def random_times(count: int) -> list[datetime]:
    rng = random.Random(7)
    start = datetime(2019, 1, 1, tzinfo=UTC)
    return [start + timedelta(microseconds=rng.randrange(10**15 // 4)) for _ in range(count)]


def text(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def nights() -> list[datetime]:
    """Every 10 minutes around the changes of the clocks in 2026."""
    changes = ["2026-03-08", "2026-03-29", "2026-04-05", "2026-10-04", "2026-10-25", "2026-11-01"]
    starts = [datetime.fromisoformat(day).replace(tzinfo=UTC) for day in changes]
    return [start + timedelta(hours=-12, minutes=10 * n) for start in starts for n in range(6 * 36)]


async def test_every_digit_of_a_time_is_shown_in_its_zone(open_page: Opener) -> None:
    page = await open_page("tasks?limit=1")
    times = random_times(100) + nights()
    for zone in ZONES:
        shown = await call(
            page, "time.js", f"given.map((at) => m.exact(at, '{zone}'))", [text(at) for at in times]
        )
        expected = [
            at.astimezone(ZoneInfo(zone)).isoformat(" ", timespec="microseconds") for at in times
        ]

        assert [each.replace("Z", "+00:00") for each in shown] == expected


async def test_a_time_that_clocks_show_leads_back_to_its_instant(open_page: Opener) -> None:
    page = await open_page("tasks?limit=1")
    times = [at.replace(microsecond=0) for at in random_times(100)] + nights()
    for zone in ZONES:
        local = [at.astimezone(ZoneInfo(zone)).replace(tzinfo=None, fold=0) for at in times]
        found = await call(
            page,
            "time.js",
            f"given.map((local) => m.instant(local, '{zone}').getTime() / 1000)",
            [at.isoformat() for at in local],
        )

        # Python's fold of 0 is the first of two instants too.
        assert found == [at.replace(tzinfo=ZoneInfo(zone)).timestamp() for at in local]


async def test_a_time_that_clocks_skip_moves_forwards(open_page: Opener) -> None:
    page = await open_page("tasks?limit=1")
    expression = "m.instant(given, 'Europe/Berlin').toISOString()"

    assert await call(page, "time.js", expression, "2026-03-29T02:30") == "2026-03-29T01:30:00.000Z"
    assert await call(page, "time.js", "m.instant(given, 'UTC')", "") is None


async def test_durations_have_two_units_at_most(open_page: Opener) -> None:
    page = await open_page("tasks?limit=1")
    expected = {
        0: "0ms",
        0.0421: "42ms",
        3.26: "3.3s",
        59.4: "59s",
        59.6: "1m",
        291: "4m 51s",
        600: "10m",
        3600: "1h",
        8040: "2h 14m",
        187200: "2d 4h",
        -75: "\N{MINUS SIGN}1m 15s",
    }

    shown = await call(page, "time.js", "given.map((each) => m.duration(each))", list(expected))

    assert shown == list(expected.values())


async def test_seconds_between_two_times_are_exact(open_page: Opener) -> None:
    page = await open_page("tasks?limit=1")
    ends = ["2026-11-25T07:01:16.999999Z", "2026-11-25T07:01:17.000001Z"]

    assert await call(page, "time.js", "m.secondsBetween(...given)", ends) == 0.000002


@pytest.mark.parametrize(
    ("span", "expected"),
    [("15m", 900), ("1h", 3600), ("7d", 604800), ("8w", 4838400), ("0h", None), ("7x", None)],
)
async def test_a_span_is_read_as_the_api_reads_it(
    open_page: Opener, span: str, expected: int | None
) -> None:
    page = await open_page("tasks?limit=1")

    assert await call(page, "time.js", "m.span(given)?.seconds ?? null", span) == expected


async def test_an_unknown_zone_is_not_one(open_page: Opener) -> None:
    page = await open_page("tasks?limit=1")
    zones = ["Europe/Berlin", "UTC", "Mars/Olympus", "+02:00", ""]

    found = await call(page, "time.js", "given.map((zone) => m.isZone(zone))", zones)

    assert found == [True, True, False, False, False]
