"""Everything that the page shows is in its URL: reload, links, Back and Forward show the same."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.async_api import Page

from audit.history.service import AuditService
from tests.conftest import ago, task
from tests.page.conftest import Opener, Site, seen, settled

Step = Callable[[Page], Awaitable[Any]]


async def shows(page: Page, expected: dict[str, Any]) -> None:
    """Wait until the page shows what it showed before."""
    found: dict[str, Any] = {}
    for _ in range(100):
        found = await seen(page)
        if found == expected:
            return
        await asyncio.sleep(0.05)
    assert found == expected


async def choose_state(page: Page, state: str) -> None:
    await page.get_by_role("group", name="States").get_by_role("button", name=state).click()


async def filter_by(page: Page, text: str) -> None:
    await page.fill("#filter", text)
    await page.press("#filter", "Enter")


async def choose_time(page: Page, name: str) -> None:
    await page.get_by_title("Time (t)").click()
    await page.get_by_role("link", name=name).click()


async def choose_window(page: Page, since: str, until: str) -> None:
    await page.get_by_title("Time (t)").click()
    await page.fill("[name=since]", since)
    await page.fill("[name=until]", until)
    await page.get_by_role("button", name="Show", exact=True).click()


async def choose_zone(page: Page, zone: str) -> None:
    await page.get_by_title("Time zone (z)").click()
    await page.fill("[name=zone]", zone)
    await page.get_by_role("button", name="Use it").click()


async def open_task(page: Page, place: int) -> None:
    await page.locator("[data-task]").nth(place).click()
    await page.wait_for_selector(".panel h2")


async def test_reload_and_link_show_the_same(open_page: Opener) -> None:
    page = await open_page("tasks")
    await choose_window(page, "2026-10-01T00:00:00", "2026-11-15T12:00:00")
    await choose_state(page, "failed")
    await choose_state(page, "completed")
    await filter_by(page, "service:payments intent:deploy_service")
    await choose_zone(page, "America/New_York")
    await settled(page)
    await open_task(page, 2)
    shown = await seen(page)

    assert len(shown["tasks"]) > 3
    assert len(shown["chips"]) == 4
    assert shown["panel"]

    await page.reload()
    await shows(page, shown)
    other = await open_page(
        page.url.partition("/tasks")[1].lstrip("/") + page.url.partition("/tasks")[2]
    )
    await shows(other, shown)


async def test_back_and_forward_show_each_step_again(open_page: Opener) -> None:
    page = await open_page("tasks?limit=50")
    steps: list[Step] = [
        lambda page: choose_state(page, "failed"),
        lambda page: choose_time(page, "Last 90 days"),
        lambda page: filter_by(page, "intent:deploy_service"),
        lambda page: filter_by(page, "service:payments"),
        lambda page: page.get_by_label("Remove intent deploy_service").click(),
        lambda page: choose_state(page, "failed"),
        lambda page: page.locator(".foot [rel=next]").click(),
        lambda page: page.locator(".foot [rel=first]").click(),
        lambda page: choose_window(page, "2026-10-10T00:00:00", "2026-11-10T00:00:00"),
        lambda page: filter_by(page, "created_by:ada@example.com"),
        lambda page: choose_state(page, "completed"),
        lambda page: open_task(page, 0),
    ]
    looks = [await seen(page)]
    for step in steps:
        await step(page)
        looks.append(await seen(page))

    assert (
        len({look["url"] for look in looks}) == len(looks) - 1
    )  # two steps lead to the first page
    assert looks[-1]["panel"]
    assert looks[-2] == {**looks[-1], "panel": None, "url": looks[-2]["url"]}
    for look in reversed(looks[:-1]):
        await page.go_back()
        await shows(page, look)
    for look in looks[1:]:
        await page.go_forward()
        await shows(page, look)


async def test_copied_link_shows_the_old_tasks_and_the_moving_one_the_new(
    open_page: Opener, scratch: Site
) -> None:
    async with AuditService.open(scratch.dsn) as service:
        old = [task(services_touched=["clock"], created_at=ago(minutes=n)) for n in range(1, 4)]
        await service.record(old)
        page = await open_page("tasks?service=clock&last=1h", at=scratch)
        links = []
        for copy in ("Link", "Link that moves"):
            await page.get_by_label("More to copy").click()
            await page.locator(".copy-menu button", has_text=copy).first.click()
            await page.locator(".notice", has_text="copied").wait_for()
            links.append(await page.evaluate("navigator.clipboard.readText()"))
        await asyncio.sleep(1.1)  # windows end at a whole second
        await service.record(
            task(services_touched=["clock"], created_at=datetime.now(UTC)) for _ in range(30)
        )

    still, moving = links
    assert set(parse_qs(urlsplit(still).query)) == {"service", "since", "until", "tz"}
    for link, total in ((still, 3), (moving, 33)):
        parts = urlsplit(link)
        page = await open_page(f"{parts.path.lstrip('/')}?{parts.query}", at=scratch)
        assert await page.inner_text("h1") == f"{total} tasks"


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("status=fialed", "status = fialed"),
        ("foo=1", "foo = 1 unknown; the parameters here are created_by, cursor, days"),
        ("last=0h", "last = 0h"),
        ("cursor=AQAAAA", "cursor = AQAAAA"),
        ("tz=Mars/Olympus&last=7d", "tz = Mars/Olympus"),
    ],
)
async def test_what_the_api_refuses_is_shown_with_a_way_out(
    open_page: Opener, query: str, says: str
) -> None:
    page = await open_page(f"tasks?{query}&service=payments")

    wrong = page.locator(".wrong li")
    assert (await wrong.inner_text()).startswith(says)
    await wrong.get_by_role("link", name="Remove it").click()
    await wrong.wait_for(state="detached")
    await settled(page)
    assert "payments" in page.url
    assert await page.locator("[data-task]").count() > 0


async def test_each_url_is_read_and_written_the_same(open_page: Opener) -> None:
    """200 random states through the page's own module: written, read, and written again."""
    rng = random.Random(7)
    values = [
        "failed",
        "a b",
        "ä/ß",
        "x&y=z",
        "100%",
        "#",
        "+1",
        '{"a": 1}',
        "2026-11-01T00:00:00Z",
    ]
    names = ["status", "service", "intent", "last", "since", "until", "created_by", "outcome",
             "cursor", "limit", "tz", "task", "facets", "unknown"]  # fmt: skip
    states = []
    for _ in range(200):
        chosen = rng.sample(names, rng.randrange(6))
        params = {name: [rng.choice(values) for _ in range(rng.randrange(1, 3))] for name in chosen}
        id_ = rng.choice([None, "0193400a", "a/b ?"])
        states.append({"page": "task" if id_ else "list", "id": id_, "params": params})
    page = await open_page("tasks")

    again = await page.evaluate(
        """async (states) => {
          const script = document.querySelector("script[type=module]").src;
          const { format, parse } = await import(new URL("url.js", script).href);
          return states.map((state) => {
            const url = format(state, "/");
            const read = parse(new URL(url, location.origin), "/");
            return { read, once: url, twice: format(read, "/") };
          });
        }""",
        states,
    )

    assert [entry["read"] for entry in again] == states
    assert [entry["twice"] for entry in again] == [entry["once"] for entry in again]
