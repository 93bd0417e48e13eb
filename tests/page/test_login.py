"""Signing in: a key that may only read becomes a session that no script can read."""

from __future__ import annotations

import csv
import json
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from playwright.async_api import Page

from tests.commandline import audit
from tests.conftest import execute, task
from tests.page.conftest import SMALL, Opener, Site, settled
from tests.processes import API, serving

#: The columns of a key that end it.
ENDS = ("revoked_at", "expires_at")


class Locked(NamedTuple):
    """A service that asks for a key."""

    site: Site
    reader: str
    watcher: str
    leavers: dict[str, str]
    """By how each ends."""
    recorder: str
    both: str


def make_key(dsn: str, name: str, *scopes: str) -> str:
    options = [option for scope in scopes for option in ("--scope", scope)]
    code, out, err = audit("keys", "create", "--name", name, *options, "--dsn", dsn)
    assert code == 0, err
    return out.split()[0]


@pytest.fixture(scope="module")
def locked(databases: Callable[[], str]) -> Iterator[Locked]:
    dsn = databases()
    reader, watcher = make_key(dsn, "ada", "read"), make_key(dsn, "watcher", "read")
    leavers = {end: make_key(dsn, end, "read") for end in ENDS}
    recorder, both = make_key(dsn, "bot", "record"), make_key(dsn, "all", "read", "record")
    with serving("--dsn", dsn, *SMALL, log=subprocess.DEVNULL) as (_, url, _lines):
        service = Locked(Site(url, dsn), reader, watcher, leavers, recorder, both)
        record(service, [task(request_text="Deploy the locked service")])
        yield service


def record(service: Locked, tasks: list[dict[str, Any]]) -> None:
    ask(f"{service.site.url}{API}/tasks", service.recorder, json.dumps(tasks).encode())


def crawled(service: Locked, query: str) -> list[str]:
    """The ids of all tasks that match, page by page."""
    found: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        follow = f"&cursor={urllib.parse.quote(cursor)}" if cursor else ""
        page = ask(f"{service.site.url}{API}/query?{query}{follow}", service.reader)
        found += [one["task_id"] for one in page["tasks"]]
        cursor = page["next_cursor"]
    return found


def ask(url: str, key: str, body: bytes | None = None) -> Any:
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=20) as answer:
        return json.load(answer)


async def sign_in(page: Page, key: str) -> None:
    await page.fill("#key", key)
    await page.get_by_role("button", name="Sign in").click()


async def signed_in(page: Page, key: str) -> None:
    """Sign in, and wait for the tasks."""
    await sign_in(page, key)
    await page.wait_for_selector("[data-task]")


async def test_a_service_without_keys_asks_for_none(open_page: Opener, site: Site) -> None:
    page = await open_page("tasks?status=failed")

    assert await page.locator("[data-task]").count() > 0
    assert await page.locator("#key").count() == 0


async def test_a_reader_signs_in_and_sees_what_the_link_shows(
    open_page: Opener, locked: Locked
) -> None:
    page = await open_page("tasks?status=completed&tz=Asia/Kathmandu", at=locked.site)
    await signed_in(page, locked.reader)

    assert page.url.endswith("/tasks?status=completed&tz=Asia/Kathmandu")
    assert await page.evaluate("document.cookie") == ""
    (cookie,) = await page.context.cookies()
    assert (cookie["httpOnly"], cookie["secure"], cookie["sameSite"]) == (True, True, "Strict")
    stored = await page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}])")
    assert locked.reader not in stored
    await page.reload()
    await page.wait_for_selector("[data-task]")

    await page.keyboard.press("?")
    await page.get_by_role("button", name="Sign out").click()
    await page.wait_for_selector("#key")
    assert await page.context.cookies() == []


async def test_what_may_not_sign_in_is_told_why(open_page: Opener, locked: Locked) -> None:
    page = await open_page("tasks", at=locked.site)
    for key, says in (
        ("no-such-key", "not known"),
        (locked.recorder, "read"),
        (locked.both, "audit keys create"),
    ):
        await sign_in(page, key)
        await page.locator("#refusal", has_text=says).wait_for()
    assert await page.context.cookies() == []


@pytest.mark.parametrize("end", ENDS)
async def test_a_key_that_ends_asks_for_another_within_seconds(
    open_page: Opener, locked: Locked, end: str
) -> None:
    """It is revoked, or expires."""
    page = await open_page("tasks?status=completed", at=locked.site)
    await signed_in(page, locked.leavers[end])

    execute(locked.site.dsn, f"UPDATE access_keys SET {end} = now() WHERE name = '{end}'")
    for _ in range(30):
        await page.get_by_role("button", name="Reload").click()
        await settled(page)
        if await page.locator("#key").count():
            break
        await page.wait_for_timeout(500)

    assert await page.locator("#key").count() == 1
    assert page.url.endswith("/tasks?status=completed")
    await signed_in(page, locked.reader)


async def test_a_live_page_asks_for_another_key_by_itself(
    open_page: Opener, locked: Locked
) -> None:
    page = await open_page("tasks?status=completed&live=1", at=locked.site)
    await signed_in(page, locked.watcher)
    await page.locator(".live-bar .on").wait_for()

    execute(locked.site.dsn, "UPDATE access_keys SET revoked_at = now() WHERE name = 'watcher'")
    await page.wait_for_selector("#key", timeout=30_000)
    assert page.url.endswith("/tasks?status=completed&live=1")
    await signed_in(page, locked.reader)
    await page.locator(".live-bar .on").wait_for()


async def test_a_session_can_only_read(open_page: Opener, locked: Locked) -> None:
    page = await open_page("tasks", at=locked.site)
    await signed_in(page, locked.reader)
    fetch = """async ([path, options]) => (await fetch(path, options)).status"""
    body = {"body": "{}", "headers": {"Content-Type": "application/json"}}
    task_url = f"{API}/tasks/0193400a-1111-7000-8000-00000000f001"

    assert await page.evaluate(fetch, [f"{API}/query", {}]) == 200
    assert await page.evaluate(fetch, [f"{API}/tasks", {"method": "POST", **body}]) == 401
    assert await page.evaluate(fetch, [task_url, {"method": "PATCH", **body}]) == 401
    assert await page.evaluate(fetch, ["/metrics", {}]) == 401


def test_another_site_cannot_use_the_session(locked: Locked) -> None:
    """Requests as a browser sends them for another site: neither its scripts nor images get in."""
    for site, mode in (("cross-site", "cors"), ("cross-site", "no-cors"), ("same-site", "cors")):
        request = urllib.request.Request(
            f"{locked.site.url}{API}/query",
            headers={
                "Cookie": f"task_audit_session={locked.reader}",
                "Sec-Fetch-Site": site,
                "Sec-Fetch-Mode": mode,
            },
        )
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=20)
        refused.value.close()
        assert refused.value.code == 401


async def test_a_session_downloads_all_tasks_that_match(
    open_page: Opener, locked: Locked, tmp_path: Path
) -> None:
    tasks = [task(created_by="eve", request_text=f'Deploy "{i}",\nthen stop') for i in range(120)]
    record(locked, tasks)
    page = await open_page("tasks", at=locked.site, ready=False)
    await signed_in(page, locked.reader)
    await page.goto(locked.site / "tasks?created_by=eve&limit=10")
    await settled(page)

    files = {}
    for name, words in (("csv", "CSV of all 120"), ("ndjson", "NDJSON")):
        async with page.expect_download() as started:
            await page.get_by_role("link", name=words).click()
        download = await started.value
        assert download.suggested_filename.endswith(f".{name}")
        files[name] = tmp_path / name
        await download.save_as(files[name])

    with files["csv"].open(newline="") as file:
        rows = [row["task_id"] for row in csv.DictReader(file)]
    lines = [json.loads(line)["task_id"] for line in files["ndjson"].read_text().splitlines()]
    assert crawled(locked, "created_by=eve&limit=50") == rows == lines
    assert {one["task_id"] for one in tasks} == set(rows)
