"""The histogram: the same totals as the list, in any zone, and a way to zoom for every hand."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Awaitable, Callable
from datetime import datetime
from urllib.parse import parse_qs, quote, urlencode, urlsplit

import pytest
from playwright.async_api import Page

from tests.conftest import execute
from tests.page.conftest import Opener, Site, settled
from tests.processes import API, get

#: Tasks of one minute.
MANY = 100_000
#: Both nights of 2026 in which the clocks of these zones change, as far as the history goes.
NIGHTS = {
    "America/New_York": ("2026-10-30T04:00:00Z", "2026-11-03T05:00:00Z"),
    "Europe/Berlin": ("2026-10-23T22:00:00Z", "2026-10-27T23:00:00Z"),
    "Asia/Kathmandu": ("2026-10-30T18:15:00Z", "2026-11-03T18:15:00Z"),
}


async def bars(page: Page) -> list[tuple[str, int]]:
    """The label and the total of each bar, from the table that the chart turns into."""
    await page.get_by_role("button", name="Table", exact=True).click()
    rows = page.locator(".twin tbody tr")
    await rows.first.wait_for()
    cells = await rows.evaluate_all(
        "rows => rows.map(row => [...row.cells].map(cell => cell.textContent.trim()))"
    )
    await page.get_by_role("button", name="Table", exact=True).click()
    return [(label, int(n.replace(",", ""))) for label, n, *_ in cells]


def total_of(site: Site, query: str) -> int:
    _, answer = get(f"{site.url}{API}/query?{query}&limit=1")
    total: int = answer["total"]
    return total


async def shown_total(page: Page) -> int:
    return int((await page.inner_text("h1")).split()[0].replace(",", ""))


#: Follow a link, and return what the page shows when it has all answers, and what the API says.
SHOWN = """async ([href, query]) => {
  const link = Object.assign(document.createElement("a"), { href });
  document.body.append(link);
  link.click();
  link.remove();
  const numbers = (selector) =>
    [...document.querySelectorAll(selector)].map((each) => +each.textContent.replace(/,/g, ""));
  const answer = await (await fetch(`api/v1/audit/query?${query}&limit=1`)).json();
  while (document.querySelector("[aria-busy=true]")) {
    await new Promise(requestAnimationFrame);
  }
  return {
    url: location.search,
    told: answer.total,
    heading: Number.parseInt(document.querySelector("h1").textContent.replace(/,/g, "")) || 0,
    bars: numbers(".twin td:nth-child(2)").reduce((sum, each) => sum + each, 0),
  };
}"""


async def test_bars_sum_up_to_the_total_of_the_list_and_of_the_api(
    open_page: Opener, site: Site
) -> None:
    """30 random filters in 3 zones, without loading the page again."""
    rng = random.Random(3)
    page = await open_page("tasks")
    await page.get_by_role("button", name="Table", exact=True).click()
    totals = set()
    for _ in range(30):
        chosen = rng.sample(
            [
                ("status", rng.choice(["failed", "completed", "rejected"])),
                ("service", rng.choice(["payments", "checkout", "catalog"])),
                ("intent", rng.choice(["deploy_service", "restart_service"])),
                ("since", f"2026-10-{rng.randrange(10, 29)}T0{rng.randrange(9)}:30:00Z"),
                ("until", f"2026-11-{rng.randrange(10, 19)}T12:00:{rng.randrange(10, 59)}Z"),
            ],
            rng.randrange(1, 5),
        )
        query = urlencode(chosen)
        for zone in ("UTC", "America/New_York", "Asia/Kathmandu"):
            shown = await page.evaluate(SHOWN, [f"tasks?{query}&tz={quote(zone)}", query])
            assert shown["heading"] == shown["bars"] == shown["told"], shown
            totals.add(shown["told"])
    assert len(totals) > 20


@pytest.mark.parametrize("zone", NIGHTS)
async def test_days_are_those_of_the_zone(open_page: Opener, site: Site, zone: str) -> None:
    since, until = NIGHTS[zone]
    page = await open_page(f"tasks?since={since}&until={until}&interval=1d&tz={quote(zone)}")
    _, answer = get(
        f"{site.url}{API}/statistics/histogram?since={since}&until={until}&interval=1d&tz={zone}"
    )
    hours = [
        (datetime.fromisoformat(each["end"]) - datetime.fromisoformat(each["start"])).seconds
        // 3600
        for each in answer["buckets"]
    ]

    shown = await bars(page)
    assert [n for _, n in shown] == [bucket["total"] for bucket in answer["buckets"]]
    assert all(":" not in label for label, _ in shown), shown  # each begins at a midnight there
    changes = {"America/New_York": 1, "Europe/Berlin": 1, "Asia/Kathmandu": 0}[zone]
    assert hours.count(1) == changes, hours  # 25 hours are a day and 1 hour


async def middle_of(page: Page, bar: int) -> tuple[float, float]:
    box = await page.locator(f"[data-bar='{bar}'] .hit").bounding_box()
    assert box
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


async def brush_by_mouse(page: Page, first: int, last: int) -> None:
    await page.mouse.move(*await middle_of(page, first))
    await page.mouse.down()
    await page.mouse.move(*await middle_of(page, last), steps=8)
    await page.mouse.up()


async def brush_by_touch(page: Page, first: int, last: int) -> None:
    fingers = await page.context.new_cdp_session(page)
    start, *others = [await middle_of(page, bar) for bar in range(first, last + 1)]
    steps = [("touchStart", start), *(("touchMove", other) for other in others), ("touchEnd", None)]
    for kind, at in steps:
        points = [{"x": at[0], "y": at[1]}] if at else []
        await fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})


async def brush_by_keyboard(page: Page, first: int, last: int) -> None:
    await page.locator(".bar[tabindex='0']").focus()
    await page.keyboard.press("Home")
    for _ in range(first):
        await page.keyboard.press("ArrowRight")
    for _ in range(last - first):
        await page.keyboard.press("Shift+ArrowRight")
    await page.keyboard.press("Enter")


@pytest.mark.parametrize(
    "brush",
    [brush_by_mouse, brush_by_touch, brush_by_keyboard],
    ids=["mouse", "touch", "keyboard"],
)
async def test_brush_zooms_to_the_edges_of_bars(
    open_page: Opener, site: Site, brush: Callable[[Page, int, int], Awaitable[None]]
) -> None:
    query = "since=2026-10-10T00:00:00Z&until=2026-11-09T00:00:00Z"
    page = await open_page(f"tasks?{query}&interval=1d", has_touch=brush is brush_by_touch)
    before = page.url

    await brush(page, 5, 9)
    await page.wait_for_url(lambda url: url != before)
    await settled(page)

    window = parse_qs(urlsplit(page.url).query)
    assert (window["since"], window["until"]) == (
        ["2026-10-15T00:00:00Z"],
        ["2026-10-20T00:00:00Z"],
    )
    inside = total_of(site, "since=2026-10-15T00:00:00Z&until=2026-10-20T00:00:00Z")
    assert await shown_total(page) == inside
    await page.keyboard.press("0")
    await page.wait_for_url(before)


async def test_labels_of_bars_have_equal_distances(open_page: Opener) -> None:
    """Of days across the end of a month, and of weeks, of which a label is every second."""
    for query in (
        "since=2026-10-20T00:00:00Z&until=2026-11-08T00:00:00Z&interval=1d",
        "since=2026-08-24T00:00:00Z&until=2026-11-30T00:00:00Z&interval=1w",
    ):
        page = await open_page(f"tasks?{query}")
        places = await page.locator(".bars .tick").evaluate_all(
            "ticks => ticks.map((tick) => parseFloat(tick.getAttribute('x1')))"
        )

        distances = [b - a for a, b in itertools.pairwise(places)]
        assert len(distances) > 4
        assert distances == pytest.approx([distances[0]] * len(distances))


async def test_table_has_rates_where_all_states_are_counted(open_page: Opener) -> None:
    window = "since=2026-11-01T00:00:00Z&until=2026-11-09T00:00:00Z"
    for query, has_rates in ((window, True), (f"{window}&status=failed", False)):
        page = await open_page(f"tasks?{query}")
        await page.get_by_role("button", name="Table").click()

        heads = await page.locator(".twin th[scope=col]").all_inner_texts()
        assert ("% failed" in heads) is has_rates
        assert await page.locator(".hint").count() == 0
        assert await page.get_by_role("button", name="Log", exact=True).count() == 0


async def test_double_click_zooms_out(open_page: Opener, site: Site) -> None:
    window = "since=2026-11-05T00:00:00Z&until=2026-11-09T00:00:00Z"
    page = await open_page(f"tasks?{window}&interval=1d")
    await page.mouse.dblclick(*await middle_of(page, 1))
    await page.wait_for_url(lambda url: "2026-11-03T00:00:00Z" in url)
    assert parse_qs(urlsplit(page.url).query)["until"] == ["2026-11-11T00:00:00Z"]

    # Where a zoom led to the window, it leads back out of it.
    before = page.url
    await settled(page)
    await page.mouse.click(*await middle_of(page, 2))
    await page.wait_for_url(lambda url: "since=2026-11-05" in url)
    await settled(page)
    await page.mouse.dblclick(*await middle_of(page, 0))
    await page.wait_for_url(before)


async def test_one_task_and_many_at_once_have_a_readable_axis(
    open_page: Opener, site: Site, scratch: Site
) -> None:
    page = await open_page("tasks?service=story")
    assert [n for _, n in await bars(page)].count(1) == 1

    execute(
        scratch.dsn,
        "INSERT INTO tasks (task_id, request_text, services_touched, created_at)"
        " SELECT gen_random_uuid(), 'x', '{burst}',"
        " timestamptz '2026-11-01T12:00:00Z' + n * interval '0.59 ms'"
        f" FROM generate_series(1, {MANY}) AS n",
    )
    page = await open_page("tasks?service=burst", at=scratch)
    assert await shown_total(page) == MANY
    assert sum(n for _, n in await bars(page)) == MANY
    labels = await page.locator(".scale text").all_text_contents()
    assert labels
    assert all(re.fullmatch(r"[\d.,]+[KMB]?", label) for label in labels), labels
    await page.goto(
        scratch / "tasks?service=burst&since=2026-11-01T11:45:00Z&until=2026-11-01T12:15:00Z"
    )
    await settled(page)
    assert [n for _, n in await bars(page) if n] == [MANY]
