"""Each part of the page loads and fails on its own, and recovers on its own."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable
from urllib.parse import urlsplit

import psycopg
import pytest
from playwright.async_api import Browser, Route

from audit.history.service import AuditService
from tests.conftest import execute, task
from tests.page.conftest import SMALL, Opener, Site, seen, settled
from tests.processes import API, serving


async def test_database_that_stops_and_returns(
    open_page: Opener, databases: Callable[[], str], postgres: str
) -> None:
    dsn = databases()
    async with AuditService.open(dsn) as service:
        await service.record([task(), task()])
    name = urlsplit(dsn).path[1:]
    with serving("--dsn", dsn, *SMALL, log=subprocess.DEVNULL) as (_, url, _lines):
        page = await open_page("tasks", at=Site(url, dsn))
        shown = await seen(page)
        execute(
            postgres,
            f"ALTER DATABASE {name} ALLOW_CONNECTIONS false",
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'",
        )
        await page.get_by_role("button", name="Reload").click()
        failure = page.locator(".tasks .failure")
        await failure.wait_for()
        assert "Trying again in" in await failure.inner_text()
        assert await failure.get_by_role("button", name="Try again").count() == 1
        assert await page.locator("#filter").is_enabled()

        execute(postgres, f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        await failure.wait_for(state="detached", timeout=60_000)
        assert (await seen(page))["tasks"] == shown["tasks"]


@pytest.mark.parametrize("status", [429, 503, 504])
async def test_refused_list_counts_down_and_is_asked_again(open_page: Opener, status: int) -> None:
    page = await open_page("tasks?status=failed")
    refused = 0

    async def refuse(route: Route) -> None:
        nonlocal refused
        refused += 1
        if refused > 1:
            await route.continue_()
            return
        problem = '{"title": "Not now", "detail": "Too much to do.", "instance": "req-1"}'
        headers = {"Retry-After": "1", "Content-Type": "application/problem+json"}
        await route.fulfill(status=status, headers=headers, body=problem)

    await page.route(f"**{API}/query*", refuse)
    await page.get_by_role("button", name="Reload").click()
    failure = page.locator(".tasks .failure")
    await failure.wait_for()
    said = await failure.inner_text()
    assert all(part in said for part in ("Not now", "Too much to do.", "req-1"))
    await failure.wait_for(state="detached")
    assert refused == 2
    assert await page.locator("[data-task]").count() > 0


async def test_slow_histogram_does_not_delay_the_list(open_page: Opener, site: Site) -> None:
    release = asyncio.Event()

    async def hold(route: Route) -> None:
        await release.wait()
        await route.continue_()

    page = await open_page("tasks?status=rejected")
    await page.route("**/statistics/histogram*", hold)
    await page.goto(f"{site.url}/tasks?status=failed")
    await page.wait_for_selector("[data-task]")
    assert await page.locator(".bar").count() == 0
    assert await page.locator(".histogram[aria-busy=true]").count() == 1
    release.set()
    await page.wait_for_selector(".bar")
    await settled(page)


async def test_locked_table_of_counts_leaves_the_task_readable(
    open_page: Opener, site: Site
) -> None:
    """A real lock: the histogram waits for it, and a task, which needs no counts, is shown."""
    page = await open_page("tasks?status=failed")
    with psycopg.connect(site.dsn) as locking:
        locking.execute("LOCK TABLE task_count_base IN ACCESS EXCLUSIVE MODE")
        # No other test asks this, so the service has no answer in its cache.
        alone = "status=failed&service=payments&until=2026-11-19T23:59:00Z"
        await page.goto(f"{site.url}/tasks?{alone}", wait_until="commit")
        await page.wait_for_selector(".histogram[aria-busy=true]")
        locking.rollback()
    await page.wait_for_selector(".bar")
    await settled(page)
    assert await page.locator("[data-task]").count() > 0


async def test_network_that_is_gone_and_returns(open_page: Opener) -> None:
    page = await open_page("tasks?status=failed")
    await page.context.set_offline(True)
    await page.get_by_role("button", name="Reload").click()
    failure = page.locator(".tasks .failure")
    await failure.get_by_text("The service cannot be reached").wait_for()

    await page.context.set_offline(False)
    await failure.get_by_role("button", name="Try again").click()
    await failure.wait_for(state="detached")
    await settled(page)
    assert await page.locator("[data-task]").count() > 0


async def test_part_that_cannot_be_loaded_any_more_is_loaded_with_the_whole_page(
    browser: Browser, site: Site
) -> None:
    """As after an update of the service: the part of the old version is gone."""
    context = await browser.new_context(base_url=site.url)
    page = await context.new_page()
    await page.goto("tasks?status=failed&last=7d")
    await settled(page)
    await page.route("**/views/help.js", lambda route: route.fulfill(status=404))
    await page.keyboard.press("?")
    alert = page.get_by_role("alert")
    await alert.get_by_text("A part of the page cannot be loaded").wait_for()
    assert await page.locator("[data-task]").count() > 0

    await page.unroute_all()
    await alert.get_by_role("button", name="Load the page again").click()
    await alert.wait_for(state="detached")
    await settled(page)
    assert urlsplit(page.url).query == "status=failed&last=7d"
    await page.keyboard.press("?")
    await page.wait_for_selector("dialog[open]")
    await context.close()
