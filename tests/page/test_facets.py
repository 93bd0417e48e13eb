"""The facets: exact counts of each value, and filters that ignore themselves."""

from __future__ import annotations

import re

from playwright.async_api import Page

from tests.page.conftest import Opener, Site, settled
from tests.processes import API, get


async def values_of(page: Page, title: str) -> dict[str, int]:
    """The values of a facet, with their counts."""
    facet = page.locator("details.facet", has=page.get_by_text(title, exact=True))
    if not await facet.evaluate("facet => facet.open"):
        await facet.locator("summary").click()
    await facet.locator(".value").first.wait_for()
    pairs = await facet.locator(".value").evaluate_all(
        "all => all.map(one => [one.querySelector('.name').textContent.trim(),"
        " one.querySelector('.n').textContent])"
    )
    return {name: int(re.sub(r"\D", "", n)) for name, n in pairs}


def total_of(site: Site, query: str) -> int:
    _, answer = get(f"{site.url}{API}/query?{query}&limit=1")
    total: int = answer["total"]
    return total


async def test_each_count_is_the_total_of_its_filter(open_page: Opener, site: Site) -> None:
    query = "status=failed&until=2026-11-20T00:00:00Z"
    page = await open_page(f"tasks?{query}")
    for title, name in (("Service", "service"), ("Intent", "intent"), ("Created by", "created_by")):
        values = await values_of(page, title)
        assert len(values) > 4
        for value, shown in values.items():
            assert shown == total_of(site, f"{query}&{name}={value}"), value


async def test_a_value_is_set_added_and_removed(open_page: Opener, site: Site) -> None:
    query = "until=2026-11-20T00:00:00Z"
    page = await open_page(f"tasks?{query}")
    before = await values_of(page, "Intent")
    intents = list(before)
    facet = page.locator("details.facet", has=page.get_by_text("Intent", exact=True))

    await facet.get_by_role("link", name=intents[0]).click()
    await page.wait_for_url(f"**intent={intents[0]}&*")
    await settled(page)
    assert await values_of(page, "Intent") == before  # it ignores its own filter
    await facet.get_by_label(f"Add {intents[1]}").check()
    await page.wait_for_url(f"**intent={intents[0]}&intent={intents[1]}*")
    await settled(page)
    total = total_of(site, f"{query}&intent={intents[0]}&intent={intents[1]}")
    assert (await page.inner_text("h1")).startswith(f"{total:,} ")
    await facet.get_by_label(f"Remove {intents[0]}").uncheck()
    await page.wait_for_url(f"{site.url}/tasks?intent={intents[1]}&until=*")


async def test_find_narrows_the_values_that_are_loaded(open_page: Opener) -> None:
    page = await open_page("tasks?until=2026-11-20T00:00:00Z")
    facet = page.locator("details.facet", has=page.get_by_text("Service", exact=True))
    await facet.get_by_role("button", name="More").click()
    await settled(page)
    await facet.get_by_label("Find in Service").fill("payments-")

    names = list(await values_of(page, "Service"))
    assert names
    assert all("payments-" in name for name in names)
