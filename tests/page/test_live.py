"""Live mode: the list follows its tasks, on one stream while the page is visible."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from playwright.async_api import Locator, Page, Route, expect

from audit.history.service import AuditService
from tests.conftest import task
from tests.page.conftest import NARROW, SMALL, WIDE, Opener, Site, axe, settled
from tests.processes import API, serving

#: How long tasks are recorded at 50 a second: 600 for the budget of ten minutes.
SECONDS = float(os.environ.get("AUDIT_TEST_LIVE_SECONDS", "5"))
HEAP_MIB = 20

#: The id and the state of each row.
ROWS = """() => [...document.querySelectorAll(".rows tbody tr")].map((row) =>
  [row.dataset.row, row.querySelector(".status").textContent.trim()])"""


async def rows(page: Page) -> list[tuple[str, str]]:
    return [(task_id, status) for task_id, status in await page.evaluate(ROWS)]


async def shows(page: Page, expected: dict[str, str]) -> None:
    """Wait until the list has exactly these tasks in these states, each once."""
    found: list[tuple[str, str]] = []
    for _ in range(300):
        found = await rows(page)
        if len(found) == len(expected) and dict(found) == expected:
            return
        await asyncio.sleep(0.1)
    assert sorted(found) == sorted(expected.items())


def news(page: Page, words: str) -> Locator:
    return page.locator(".live-bar").get_by_role("button", name=f"Show {words}", exact=True)


async def live(page: Page) -> None:
    await page.locator(".live-bar").get_by_text("Live", exact=True).wait_for()


async def record(service: AuditService, name: str, count: int, **members: Any) -> list[str]:
    tasks = [
        task(services_touched=[name], status="pending", created_at=None, **members)
        for _ in range(count)
    ]
    await service.record(tasks)
    return [each["task_id"] for each in tasks]


async def turn(page: Page, visibility: str) -> None:
    """Hide or show a tab. Headless Chromium calls every tab visible, so the page is told here."""
    await page.evaluate(
        """(visibility) => {
          Object.defineProperty(document, "visibilityState", {
            configurable: true, get: () => visibility,
          });
          document.dispatchEvent(new Event("visibilitychange"));
        }""",
        visibility,
    )


async def test_list_and_numbers_follow_the_tasks(open_page: Opener, scratch: Site) -> None:
    page = await open_page("tasks?service=follow", at=scratch)
    await page.keyboard.press("l")
    await live(page)
    assert "live=1" in page.url
    async with AuditService.open(scratch.dsn) as service:
        first, second = await record(service, "follow", 2)
        await shows(page, {first: "pending", second: "pending"})
        await service.update(first, {"status": "executing"})
        await service.update(second, {"status": "failed", "error_message": "no disk"})
        await record(service, "other", 1)

        await shows(page, {first: "executing", second: "failed"})
        await page.get_by_text("no disk").wait_for()
    await page.locator("h1", has_text="2 tasks").wait_for()
    await page.locator(".state-count.failed strong", has_text="1").wait_for()
    await page.get_by_role("button", name="Table", exact=True).click()
    await page.locator(".twin td:nth-child(2)", has_text="2").wait_for()

    await page.keyboard.press("l")
    await page.locator(".live-bar").wait_for(state="detached")
    assert "live" not in page.url


async def test_task_that_begins_to_match_appears_at_its_place(
    open_page: Opener, scratch: Site
) -> None:
    async with AuditService.open(scratch.dsn) as service:
        oldest, middle, newest = await record(service, "match", 3)
        for each in (oldest, newest):
            await service.update(each, {"status": "failed"})
        page = await open_page("tasks?service=match&status=failed&live=1&last=1h", at=scratch)
        await live(page)
        await service.update(middle, {"status": "failed"})
        await shows(page, dict.fromkeys((oldest, middle, newest), "failed"))
        order = [task_id for task_id, _ in await rows(page)]
    await page.reload()
    await settled(page)
    assert [task_id for task_id, _ in await rows(page)] == order


async def test_list_does_not_move_under_the_focus(open_page: Opener, scratch: Site) -> None:
    async with AuditService.open(scratch.dsn) as service:
        known = await record(service, "focus", 5)
        page = await open_page("tasks?service=focus&live=1", at=scratch)
        await live(page)
        for _ in range(3):
            await page.keyboard.press("j")
        focused = page.locator("a:focus")
        before, box = await rows(page), await focused.bounding_box()

        new = await record(service, "focus", 3)
        above = before[0][0]
        await service.update(above, {"status": "failed", "error_message": "a second line"})
        await news(page, "4 changes").wait_for()
        # The numbers count what waits too, also after the last change.
        await page.locator("h1", has_text="8 tasks").wait_for()
        new += await record(service, "focus", 1)
        await page.locator("h1", has_text="9 tasks").wait_for()
        await news(page, "5 changes").wait_for()
        assert (await rows(page), await focused.bounding_box()) == (before, box)

        await page.keyboard.press("n")
        await shows(page, {**dict.fromkeys(known + new, "pending"), above: "failed"})
        assert await page.locator(".live-bar button").count() == 0


async def test_changes_wait_in_sight_of_those_who_read_below(
    open_page: Opener, scratch: Site
) -> None:
    async with AuditService.open(scratch.dsn) as service:
        await record(service, "below", 60)
        for size in (WIDE, NARROW):
            page = await open_page("tasks?service=below&live=1", at=scratch, size=size)
            await live(page)
            await page.locator(".rows tbody tr").last.scroll_into_view_if_needed()
            before = await rows(page)
            new = await record(service, "below", 1)
            button = news(page, "1 change")
            await expect(button).to_be_in_viewport(timeout=15_000)
            assert await rows(page) == before

            await button.click()
            newest = page.locator(f"[data-row='{new[0]}']")
            await expect(newest).to_be_in_viewport(timeout=15_000)


async def test_silent_stream_is_opened_again(open_page: Opener, scratch: Site) -> None:
    page = await open_page(at=scratch)
    await page.clock.install()
    async with page.expect_request("**/feed?*"):
        await page.goto(scratch / "tasks?service=silent&live=1")
    await live(page)
    # The service sends something every 15 seconds, so nothing comes in this minute.
    async with page.expect_request("**/feed?*position=*"):
        await page.clock.fast_forward(60_000)
    async with AuditService.open(scratch.dsn) as service:
        new = await record(service, "silent", 2)
    await shows(page, dict.fromkeys(new, "pending"))


async def test_open_task_is_shown_as_it_changes(open_page: Opener, scratch: Site) -> None:
    async with AuditService.open(scratch.dsn) as service:
        (opened,) = await record(service, "opened", 1)
        page = await open_page(f"tasks?service=opened&live=1&task={opened}", at=scratch)
        await live(page)
        await service.update(opened, {"status": "executing"})
        await page.locator(".panel .timeline li.executing").wait_for()
        await record(service, "opened", 1)
        await news(page, "1 change").wait_for()
    assert await page.locator(".panel .status").first.inner_text() == "executing"


async def test_list_is_followed_again_after_the_page_of_a_task(
    open_page: Opener, scratch: Site
) -> None:
    async with AuditService.open(scratch.dsn) as service:
        (first,) = await record(service, "back", 1)
        page = await open_page("tasks?service=back&live=1", at=scratch)
        await live(page)
        await page.keyboard.press("j")
        await page.keyboard.press("o")
        await page.wait_for_url(f"**/tasks/{first}")
        (second,) = await record(service, "back", 1)
        await page.go_back()
        await shows(page, {first: "pending", second: "pending"})
        (third,) = await record(service, "back", 1)
        await shows(page, dict.fromkeys((first, second, third), "pending"))


async def test_numbers_and_the_open_task_recover_from_failures(
    open_page: Opener, scratch: Site
) -> None:
    failing = 0

    async def fail(route: Route) -> None:
        nonlocal failing
        failing += 1
        await route.fulfill(status=503, headers={"Retry-After": "600"}, body="{}")

    async with AuditService.open(scratch.dsn) as service:
        (opened,) = await record(service, "recover", 1)
        page = await open_page("tasks?service=recover&live=1", at=scratch)
        await live(page)
        await page.route(f"**{API}/statistics/*", fail)
        await page.get_by_role("button", name="Reload").click()
        failures = page.locator(".failure")
        await failures.first.wait_for()
        await page.keyboard.press("j")
        await page.keyboard.press("Enter")
        await page.locator(".panel .timeline li.pending").wait_for()
        await page.route(f"**{API}/tasks/*", fail)

        async with page.expect_request(f"**{API}/tasks/{opened}"):
            await service.update(opened, {"status": "executing"})
        await page.unroute_all()
        await page.locator(".panel .status.executing").wait_for()
        await page.locator(".state-count.executing strong", has_text="1").wait_for()
        # The histogram and the facets recover one after the other.
        await failures.first.wait_for(state="detached")
    assert failing > 0


async def test_every_change_is_shown_once_whatever_happens(
    open_page: Opener, databases: Callable[[], str]
) -> None:
    """500 tasks and 500 changes: seen, in a hidden tab, without a network, and in a restart."""
    dsn, rng = databases(), random.Random(1)
    following = {"pending": "approved", "approved": "executing", "executing": "completed"}
    statuses: dict[str, str] = {}

    async def happen(service: AuditService) -> None:
        statuses.update(dict.fromkeys(await record(service, "once", 125), "pending"))
        is_open = [each for each, status in statuses.items() if status in following]
        for each in rng.sample(is_open, 125):
            statuses[each] = following[statuses[each]]
            await service.update(each, {"status": statuses[each]})

    with serving("--dsn", dsn, *SMALL, log=subprocess.DEVNULL) as (process, url, _lines):
        page = await open_page("tasks?service=once&live=1&limit=500", at=Site(url, dsn))
        await live(page)
        async with AuditService.open(dsn) as service:
            await happen(service)
            await turn(page, "hidden")
            await happen(service)
            await turn(page, "visible")
            # Chromium keeps the stream that is open. The restart of the workers ends it.
            await page.context.set_offline(True)
            process.send_signal(signal.SIGHUP)
            await page.locator(".live-bar").get_by_text("Reconnecting…").wait_for()
            await happen(service)
            await page.context.set_offline(False)
            await live(page)
            process.send_signal(signal.SIGHUP)
            await happen(service)
        await news(page, "500 changes").wait_for(timeout=30_000)
        await page.keyboard.press("n")
        await shows(page, statuses)
        assert await page.locator("h1").inner_text() == "500 tasks"


async def test_hidden_tabs_hold_no_stream(open_page: Opener, scratch: Site) -> None:
    """A browser opens six connections to a server. Eight live tabs must leave one for the ninth."""
    first = await open_page("tasks?service=tabs&live=1", at=scratch)
    await live(first)
    for _ in range(8):
        page = await first.context.new_page()
        await page.goto(scratch / "tasks?service=tabs&live=1")
        await live(page)
        await turn(page, "hidden")
    ninth = await first.context.new_page()
    await ninth.goto(scratch / "tasks?service=tabs")
    await settled(ninth)


async def test_flood_keeps_the_page_small(
    open_page: Opener, scratch: Site, told: Callable[[str], None]
) -> None:
    """50 tasks a second, which someone looks at each second."""
    page = await open_page("tasks?service=flood&live=1&limit=500", at=scratch)
    await live(page)
    client = await page.context.new_cdp_session(page)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(urlsplit(request.url).path.split("/")[-1]))

    async def heap() -> float:
        await client.send("HeapProfiler.collectGarbage")
        used: float = (await client.send("Runtime.getHeapUsage"))["usedSize"]
        return used / 2**20

    before, count, began = await heap(), 0, time.monotonic()
    async with AuditService.open(scratch.dsn) as service:
        while (passed := time.monotonic() - began) < SECONDS:
            count += len(await record(service, "flood", 25))
            if count % 50 == 0:
                await page.keyboard.press("n")
                assert await page.locator(".rows tbody tr").count() <= 500
            await asyncio.sleep(max(0.0, count / 50 - passed))
    await page.locator("h1", has_text=f"{count:,} tasks").wait_for(timeout=30_000)
    # The numbers are asked for with each list, and every two seconds at most.
    most = asked.count("query") + (time.monotonic() - began) / 2 + 1
    assert asked.count("histogram") <= most
    grown = await heap() - before
    told(f"page: {grown:+.1f} MiB of heap after {count:,} tasks in {SECONDS:.0f} s of live mode")
    assert grown <= HEAP_MIB


async def test_live_mode_has_no_known_fault_of_accessibility(
    open_page: Opener, scratch: Site, shots: Any
) -> None:
    async with AuditService.open(scratch.dsn) as service:
        await record(service, "look", 8)
        for dark in (False, True):
            page = await open_page("tasks?service=look&live=1", at=scratch, dark=dark)
            await live(page)
            await page.keyboard.press("j")
            await record(service, "look", 3)
            await news(page, "3 changes").wait_for()
            for name, (width, height) in {"wide": WIDE, "mobile": NARROW}.items():
                await page.set_viewport_size({"width": width, "height": height})
                await settled(page)
                scheme = "dark" if dark else "light"
                await page.screenshot(path=shots / f"live-{name}-{scheme}.png")
                assert await axe(page) == []
