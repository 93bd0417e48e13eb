"""Everything works by keyboard alone, and the focus is always in sight."""

from __future__ import annotations

import pytest
from playwright.async_api import Page

from tests.page.conftest import Opener, settled

FOCUS = """() => {
  const element = document.activeElement;
  const box = element.getBoundingClientRect();
  // A field may leave it to its frame to show the focus, and a bar shows it by a stroke.
  const outlined = [element, element.closest(".filter-box"), element.querySelector(".hit")].some(
    (each) => {
      const style = each && getComputedStyle(each);
      const outline = style?.outlineStyle !== "none" && parseFloat(style?.outlineWidth) >= 2;
      return outline || (style?.stroke !== "none" && parseFloat(style?.strokeWidth) >= 2);
    },
  );
  const top = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);
  return {
    name: element.textContent.trim().replace(/\\s+/g, " ").slice(0, 80) || element.id,
    outlined,
    inSight: element.contains(top) || top?.contains(element) === true,
    size: Math.min(box.width, box.height),
  };
}"""


async def assert_focus_in_sight(page: Page) -> None:
    focus = await page.evaluate(FOCUS)
    assert focus["outlined"], focus
    assert focus["inSight"], focus


async def test_a_failure_is_found_and_its_id_copied(open_page: Opener) -> None:
    page = await open_page("tasks")
    keyboard = page.keyboard

    await keyboard.press("/")
    await keyboard.type("service:payments status:failed")
    await keyboard.press("Enter")
    await settled(page)
    await keyboard.press("Escape")
    await keyboard.press("Escape")
    await keyboard.press("j")
    await assert_focus_in_sight(page)
    first = await page.evaluate("document.activeElement.dataset.task")
    await keyboard.press("j")
    await assert_focus_in_sight(page)
    second = await page.evaluate("document.activeElement.dataset.task")
    assert first != second

    await keyboard.press("Enter")
    await page.wait_for_selector(".panel h2")
    assert await page.evaluate("document.activeElement.matches('.panel')")
    await keyboard.press("[")
    await page.wait_for_url(f"**task={first}*")
    await page.wait_for_selector(".panel .task-copy button")
    for _ in range(9):
        await keyboard.press("Tab")
        await assert_focus_in_sight(page)
        if await page.evaluate("document.activeElement.textContent") == "Copy id":
            break
    await keyboard.press("Enter")
    await page.get_by_text("Id copied").wait_for()
    assert await page.evaluate("navigator.clipboard.readText()") == first

    await keyboard.press("Escape")
    await page.wait_for_selector(".panel", state="detached")
    assert await page.evaluate("document.activeElement.dataset.task") == first
    await keyboard.press("o")
    await page.wait_for_url(f"**/tasks/{first}")


async def test_bar_with_the_focus_says_how_to_zoom(open_page: Opener) -> None:
    page = await open_page("tasks?status=failed")
    keys = page.locator(".readout .keys")
    assert not await keys.is_visible()

    await page.get_by_role("button", name="Table").focus()
    await page.keyboard.press("Tab")
    await page.keyboard.press("ArrowRight")

    assert await keys.is_visible()
    assert "Enter zooms in" in await keys.inner_text()


async def test_help_lists_the_shortcuts_and_returns_the_focus(open_page: Opener) -> None:
    page = await open_page("tasks?status=failed")
    button = page.get_by_role("button", name="Help")
    await button.focus()

    await page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="Help")
    await dialog.wait_for()
    assert await dialog.locator("kbd").count() > 15
    await page.keyboard.press("Escape")
    await dialog.wait_for(state="detached")
    assert await button.evaluate("element => element === document.activeElement")


async def test_shortcuts_can_be_turned_off_and_rest_in_fields(open_page: Opener) -> None:
    page = await open_page("tasks?status=failed")
    await page.fill("#filter", "")
    await page.focus("#filter")
    await page.keyboard.type("tdzv?")
    assert await page.input_value("#filter") == "tdzv?"
    assert await page.locator("dialog").count() == 0
    await page.fill("#filter", "")
    await page.keyboard.press("Escape")
    await page.keyboard.press("Escape")

    await page.keyboard.press("?")
    await page.get_by_label("Shortcuts are on").uncheck()
    await page.keyboard.press("Escape")
    await page.wait_for_selector("dialog", state="detached")
    await page.keyboard.press("t")
    assert await page.locator(".time-menu").count() == 0
    await page.reload()
    await settled(page)
    await page.keyboard.press("t")
    assert await page.locator(".time-menu").count() == 0


@pytest.mark.parametrize("size", [(1440, 900), (390, 844)], ids=["wide", "narrow"])
async def test_every_stop_of_the_focus_is_in_sight(
    open_page: Opener, size: tuple[int, int]
) -> None:
    """Targets are at least 24 px, unless they are links inside a text."""
    page = await open_page("tasks?status=failed&limit=50", size=size)
    for _ in range(60):
        await page.keyboard.press("Tab")
        await assert_focus_in_sight(page)
