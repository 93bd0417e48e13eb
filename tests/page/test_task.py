"""One task: its timeline, what ran around it, and its JSON as it was sent."""

from __future__ import annotations

import json
import re
import uuid

from playwright.async_api import Page

from tests.conftest import execute
from tests.page.conftest import STORY, STORY_OUTCOME, Opener, Site, settled
from tests.processes import API, get


async def lines(page: Page, selector: str) -> list[str]:
    """The text of each element, with single spaces."""
    return [" ".join(text.split()) for text in await page.locator(selector).all_inner_texts()]


async def clipboard(page: Page) -> str:
    text: str = await page.evaluate("navigator.clipboard.readText()")
    return text


async def test_timeline_says_who_changed_what(open_page: Opener) -> None:
    page = await open_page(f"tasks/{STORY}")
    await page.wait_for_selector(".timeline")

    assert await page.inner_text("h1") == "Run the playbook of the week on story"
    assert await lines(page, ".timeline .what > p:first-child") == [
        "recorded as pending by deploy-bot",
        "approved by grace@example.com, was pending",
        "executing by orchestrator, was approved",
        "failed by orchestrator, was executing",
    ]
    assert await lines(page, ".timeline > li:last-child .changes li") == [
        "completed_at 2026-11-18 07:06:07.441000Z",
        "outcome.attempts 2",
        "error_message health check failed: 3 of 5 replicas did not become ready",
    ]
    assert await lines(page, ".phase-words span:not(.muted)") == [
        "waited 3.2s for approval",
        "ran 4m 47s",
    ]


async def test_only_what_has_run_is_said_to_have_run(open_page: Opener, scratch: Site) -> None:
    """A failed task without the time of its end is not open, and an approved one does not run."""
    failed_id, approved_id = str(uuid.uuid4()), str(uuid.uuid4())
    execute(
        scratch.dsn,
        "INSERT INTO tasks (task_id, request_text, status, created_at, approved_at) VALUES"
        f" ('{failed_id}', 'x', 'failed', '2026-11-18T07:00Z', NULL),"
        f" ('{approved_id}', 'x', 'approved', '2026-11-18T07:00Z', '2026-11-18T07:01Z')",
    )
    said = []
    for task_id in (failed_id, approved_id):
        page = await open_page(f"tasks/{task_id}", at=scratch)
        await page.wait_for_selector(".timeline")
        said.append(await lines(page, ".task-state, .phase-words span:not(.muted)"))

    failed, (approved, waited, since) = said
    assert failed == ["failed"]
    assert re.fullmatch(r"approved for \d+d( \d+h)?", approved)
    assert waited == "waited 1m for approval"
    assert re.fullmatch(r"approved for \d+d( \d+h)?", since)


async def test_id_that_is_none_is_refused_in_one_sentence(open_page: Opener) -> None:
    page = await open_page("tasks/nonsense", ready=False)

    assert await lines(page, ".failure > :is(p:not(.muted), ul)") == [
        "Parameters or fields are not valid",
        "task_id: must be a UUID such as 7d9f1c9e-0c3f-4d0e-9a63-6b6f0b7c2d11",
    ]


async def test_json_is_shown_as_it_was_sent(open_page: Opener) -> None:
    page = await open_page(f"tasks/{STORY}")
    outcome = page.locator("section", has=page.get_by_role("heading", name="Outcome"))

    shown = await outcome.locator(".json-number").all_inner_texts()
    assert sorted(shown) == sorted([str(STORY_OUTCOME["big"]), "2"])

    await page.get_by_role("button", name="Copy JSON").click()
    await page.get_by_text("JSON copied").wait_for()
    assert json.loads(await clipboard(page))["outcome"] == {**STORY_OUTCOME, "attempts": 2}


async def test_task_leads_to_the_tasks_of_its_values(open_page: Opener, site: Site) -> None:
    page = await open_page(f"tasks/{STORY}?tz=Asia/Kathmandu")

    await page.get_by_role("link", name='Show tasks with environment "prod"').click()
    await settled(page)

    assert (
        page.url == f"{site.url}/tasks?outcome=%7B%22environment%22:%22prod%22%7D&tz=Asia/Kathmandu"
    )
    _, answer = get(f"{site.url}{API}/query?outcome=%7B%22environment%22:%22prod%22%7D&limit=1")
    assert f"{answer['total']:,} tasks" in await page.inner_text("h1")


async def test_what_ran_before_a_failure_is_one_click_away(open_page: Opener, site: Site) -> None:
    _, answer = get(f"{site.url}{API}/query?service=payments&status=failed&limit=5")
    failure = answer["tasks"][-1]
    service, before = failure["services_touched"][0], failure["created_at"]
    _, earlier = get(f"{site.url}{API}/query?service={service}&until={before}&limit=3")
    page = await open_page(f"tasks?service=payments&task={failure['task_id']}")
    links = page.locator(".around a")
    await links.first.wait_for()

    hrefs = [await links.nth(number).get_attribute("href") or "" for number in range(3)]
    expected = [task["task_id"] for task in reversed(earlier["tasks"])]
    assert [href.rpartition("task=")[2] for href in hrefs] == expected

    await links.nth(2).click()
    await page.wait_for_url(f"**/tasks?service=payments&task={expected[2]}")
    title = page.locator(".panel h2")
    await title.get_by_text(earlier["tasks"][0]["request_text"]).wait_for()


async def test_each_value_can_be_copied(open_page: Opener) -> None:
    page = await open_page(f"tasks/{STORY}")
    await page.wait_for_selector(".around")
    for name, copied in {
        "Copy story": "story",
        "Copy run_playbook": "run_playbook",
        "Copy ada@example.com": "ada@example.com",
        f"Copy {STORY}": STORY,
        "Copy 2026-11-18T07:01:16.785000Z": "2026-11-18T07:01:16.785000Z",
        "Copy health check failed": "health check failed: 3 of 5 replicas did not become ready",
        f"Copy {STORY_OUTCOME['big']}": str(STORY_OUTCOME["big"]),
        "Copy prod": "prod",
    }.items():
        await page.get_by_role("button", name=name).first.click()
        assert await clipboard(page) == copied
