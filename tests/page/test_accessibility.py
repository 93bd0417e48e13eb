"""No screen has a fault that axe-core knows, and none scrolls sideways.

The screenshots of all screens are for people: AUDIT_TEST_SHOTS names the folder that keeps them.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.async_api import Page

from tests.page.conftest import NARROW, STORY, WIDE, Opener, Site, axe, settled

#: Few tasks, so that axe-core has few elements to check.
FEW = "service=payments&status=failed&since=2026-11-10T00:00:00Z&until=2026-11-20T00:00:00Z"
SIZES = {"wide": WIDE, "mobile": NARROW, "small": (320, 800)}


async def of_failures(page: Page) -> None:
    await page.wait_for_selector("[data-task]")


async def of_menu(page: Page) -> None:
    await page.keyboard.press("t")
    await page.wait_for_selector(".time-menu")


async def of_views(page: Page) -> None:
    await page.keyboard.press("v")
    await page.fill(".views-menu [name=name]", "Failures of payments")
    await page.get_by_role("button", name="Save", exact=True).click()
    await page.wait_for_selector(".own")


async def of_help(page: Page) -> None:
    await page.keyboard.press("?")
    await page.wait_for_selector("dialog[open]")


async def of_task(page: Page) -> None:
    await page.wait_for_selector(".timeline")
    await page.wait_for_selector(".around")


async def of_empty(page: Page) -> None:
    await page.wait_for_selector(".empty")


async def of_wrong(page: Page) -> None:
    await page.wait_for_selector(".wrong")


async def of_table(page: Page) -> None:
    await page.get_by_role("button", name="Table").click()
    await page.wait_for_selector(".twin table")


#: Each screen: its URL, and what leads to it from there.
SCREENS = {
    "failures": (f"tasks?{FEW}", of_failures),
    "menu": (f"tasks?{FEW}", of_menu),
    "views": (f"tasks?{FEW}", of_views),
    "help": (f"tasks?{FEW}", of_help),
    "panel": (f"tasks?service=story&task={STORY}", of_task),
    "task": (f"tasks/{STORY}", of_task),
    "empty": ("tasks?status=rejected&service=story&last=7d", of_empty),
    "wrong": ("tasks?status=fialed&last=0h", of_wrong),
    "table": (f"tasks?{FEW}&interval=1d", of_table),
}


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("screen", SCREENS)
async def test_screen_has_no_known_fault_of_accessibility(
    open_page: Opener, shots: Path, screen: str, dark: bool
) -> None:
    path, lead = SCREENS[screen]
    faults: dict[str, list[str]] = {}
    page = await open_page(path, dark=dark)
    await lead(page)
    for name, (width, height) in SIZES.items():
        await page.set_viewport_size({"width": width, "height": height})
        await settled(page)
        await page.screenshot(path=shots / f"{screen}-{name}-{'dark' if dark else 'light'}.png")
        faults[name] = await axe(page)
        overflow = await page.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        if overflow > 0:
            faults[name].append(f"scrolls sideways by {overflow} px")

    assert {name: found for name, found in faults.items() if found} == {}


async def test_sign_in_has_no_known_fault_of_accessibility(
    open_page: Opener, site: Site, shots: Path
) -> None:
    for dark in (False, True):
        page = await open_page("tasks", dark=dark, ready=False)
        # The view of a service that asks for a key, which test_login.py runs.
        await page.route("**/whoami", lambda route: route.fulfill(status=401, body="{}"))
        await page.reload()
        await page.wait_for_selector("#key")
        await page.screenshot(path=shots / f"login-wide-{'dark' if dark else 'light'}.png")
        assert await axe(page) == []
        await page.set_viewport_size({"width": 320, "height": 700})
        assert await axe(page) == []


async def test_page_of_a_task_fits_at_400_percent(open_page: Opener) -> None:
    """A window of 1,280 px at 400 % has 320 px, with a pixel ratio of 4 (WCAG 1.4.10)."""
    for path in (f"tasks?{FEW}", f"tasks/{STORY}"):
        page = await open_page(path, size=(320, 256), device_scale_factor=4)
        assert await page.evaluate("document.documentElement.scrollWidth") == 320
