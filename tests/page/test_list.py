"""The list: filters, pages, what can be copied, saved views, and what an empty list says."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import subprocess

from tests.page.conftest import NARROW, Opener, Site, seen, settled
from tests.processes import API, AUDIT, get


def ids_of(output: str) -> list[str]:
    return re.findall(r'"task_id":\s*"([0-9a-f-]{36})"', output)


async def run_in_shell(command: str) -> str:
    """Run a copied command as a person does; `audit` is found first on the PATH."""
    done = await asyncio.to_thread(
        subprocess.run,
        ["bash", "-c", command],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": f"{AUDIT.parent}:{os.environ['PATH']}"},
        timeout=60,
    )
    return done.stdout


async def test_copied_commands_give_the_tasks_of_the_page(open_page: Opener) -> None:
    page = await open_page(
        "tasks?status=failed&status=rejected&service=payments&until=2026-11-20T00:00:00Z"
        "&outcome=%7B%22environment%22:%22prod%22%7D&limit=50"
    )
    tasks = (await seen(page))["tasks"]
    assert len(tasks) > 2

    for name, options in (("curl command", ""), ("audit command", " --output json")):
        await page.get_by_label("More to copy").click()
        await page.locator(".copy-menu button", has_text=name).click()
        await page.locator(".notice", has_text=f"{name} copied").wait_for()
        command = await page.evaluate("navigator.clipboard.readText()")
        assert shlex.split(command)[0] in {"curl", "audit"}
        assert ids_of(await run_in_shell(command + options)) == tasks, command


async def test_pages_lead_through_the_whole_list_and_back(open_page: Opener, site: Site) -> None:
    query = "status=failed&until=2026-11-20T00:00:00Z&limit=50"
    _, all_failed = get(f"{site.url}{API}/query?{query.replace('=50', '=500')}")
    page = await open_page(f"tasks?{query}")
    found, firsts = [], []
    while True:
        shown = await seen(page)
        found += shown["tasks"]
        firsts.append(shown["tasks"][0])
        older = page.locator(".foot [rel=next]")
        if not await older.count():
            break
        await older.click()
        await page.locator(f"[data-task='{firsts[-1]}']").wait_for(state="detached")
    assert len(firsts) > 2
    assert found == [task["task_id"] for task in all_failed["tasks"]]

    await page.locator(".foot [rel=prev]").click()
    assert (await seen(page))["tasks"][0] == firsts[-2]
    await page.fill(".foot [name=number]", "61")
    await page.press(".foot [name=number]", "Enter")
    await page.wait_for_url("**offset=60*")
    assert (await seen(page))["tasks"][0] == found[60]


async def test_filter_box_completes_names_and_values(open_page: Opener, site: Site) -> None:
    page = await open_page("tasks")
    await page.fill("#filter", "sta")
    await page.press("#filter", "Tab")
    assert await page.input_value("#filter") == "status:"
    await page.locator("#filter").press_sequentially("fai")
    await page.press("#filter", "Tab")
    await page.press("#filter", "Enter")
    await page.wait_for_url("**/tasks?status=failed")
    await settled(page)

    task = (await seen(page))["tasks"][3]
    await page.fill("#filter", task)
    await page.press("#filter", "Enter")
    await page.wait_for_url(f"**task={task}")
    await page.keyboard.press("Escape")
    await page.press("#filter", "Backspace")
    await page.wait_for_url("**/tasks")
    assert site.url in page.url


async def test_zone_of_the_url_is_the_zone_of_every_time(open_page: Opener, site: Site) -> None:
    query = "service=payments&until=2026-11-20T00:00:00Z&limit=50"
    page = await open_page(f"tasks?{query}&tz=Asia/Kathmandu")
    _, answer = get(f"{site.url}{API}/query?{query}")
    assert answer["tasks"]

    times = (await seen(page))["times"]
    for task, shown in zip(answer["tasks"], times, strict=True):
        hour, minute = int(task["created_at"][11:13]), int(task["created_at"][14:16])
        local = (hour * 60 + minute + 345) % 1440
        assert f"{local // 60:02}:{local % 60:02}" in shown
    assert await page.locator(".rows .zone").inner_text() == "(Kathmandu)"


async def test_head_of_a_phone_has_two_rows(open_page: Opener) -> None:
    page = await open_page("tasks?last=24h&tz=Europe/Berlin", size=NARROW)

    head = await page.locator(".head").bounding_box()
    assert head
    assert head["height"] < 100
    assert await page.locator(".menu-holder.zone").inner_text() == "Berlin"


async def test_empty_list_says_what_would_show_tasks(open_page: Opener, site: Site) -> None:
    page = await open_page("tasks?service=story&last=1h")
    any_time = page.locator(".empty li", has_text="At any time")

    assert "1 task, the newest on 2026-11-18 07:01" in " ".join(
        (await any_time.inner_text()).split()
    )
    await any_time.get_by_role("link").click()
    await settled(page)
    assert page.url == f"{site.url}/tasks?service=story"
    assert len((await seen(page))["tasks"]) == 1


async def test_tasks_of_several_services_touched_all_of_them(open_page: Opener) -> None:
    page = await open_page("tasks?service=payments&service=nosuch")

    assert await page.inner_text(".empty li") == "Without service payments and nosuch"


async def test_history_without_tasks_says_so(open_page: Opener, scratch_empty: Site) -> None:
    page = await open_page("tasks", at=scratch_empty)

    assert "No task has been recorded yet" in await page.inner_text(".empty")
    link = page.get_by_role("link", name="How to record a task")
    assert await link.evaluate("link => link.href") == f"{scratch_empty.url}/docs"


async def test_views_can_be_saved_opened_and_removed(open_page: Opener, site: Site) -> None:
    page = await open_page("tasks?status=failed&service=payments")
    await page.keyboard.press("v")
    await page.fill(".views-menu [name=name]", "Payments <b>fail</b>")
    await page.get_by_role("button", name="Save", exact=True).click()
    await page.goto(f"{site.url}/tasks")
    await settled(page)

    await page.keyboard.press("v")
    await page.get_by_role("link", name="Payments <b>fail</b>").click()
    await page.wait_for_url("**/tasks?status=failed&service=payments")
    await page.keyboard.press("v")
    await page.get_by_label("Remove Payments <b>fail</b>").click()
    await page.locator(".own").wait_for(state="detached")
    assert await page.locator(".views-menu > a").count() == 6


async def test_page_and_documentation_lead_to_each_other(open_page: Opener, site: Site) -> None:
    page = await open_page("tasks")
    await page.keyboard.press("?")
    await page.get_by_role("link", name="Documentation of the API").click()
    await page.wait_for_url(f"{site.url}/docs")

    async with page.context.expect_page() as opened:
        await page.get_by_role("link", name="The web page").click()

    page = await opened.value
    await page.wait_for_url(f"{site.url}/tasks?status=failed&last=7d")
    await settled(page)
