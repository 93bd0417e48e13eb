"""Text of tasks is shown as text, whatever it contains."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest_asyncio

from audit.history.service import AuditService
from tests.conftest import task
from tests.page.conftest import Opener, Site, settled

#: Texts that become something else where a page treats them as HTML, a URL, a template or layout.
TEXTS = [
    "<script>window.hit = 1</script>",
    "<img src=x onerror='window.hit = 1'>",
    "\"'><svg onload=window.hit=1>",
    "javascript:window.hit=1",
    "${window.hit = 1} {{window.hit = 1}}",
    "</title></textarea></style><iframe srcdoc='<script>parent.hit=1</script>'>",
    "\u202egnp.exe \u2066isolated\u2069",
    "a" * 4000,
    "\N{MATHEMATICAL SCRIPT CAPITAL X}" * 300,
    "e" + "\u0301" * 200,
    "line 1\nline 2\ttab \x01\x7f",
    "%00%zz../../etc/passwd",
    "constructor",
    "__proto__",
    "<!--?lit$123$-->",
]

#: What scrolls sideways: the page or the panel.
SIDEWAYS = """() => ["html", ".panel"].filter((selector) => {
  const { scrollWidth, clientWidth } = document.querySelector(selector);
  return scrollWidth > clientWidth;
})"""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def hostile(scratch: Site) -> list[str]:
    """The ids of tasks that have such a text in every member."""
    ids = [str(uuid.uuid4()) for _ in TEXTS]
    async with AuditService.open(scratch.dsn) as service:
        for id_, text in zip(ids, TEXTS, strict=True):
            short = text.replace("\x01", "")[:200]
            await service.record(
                [
                    task(
                        task_id=id_,
                        status="failed",
                        request_text=text,
                        services_touched=["hostile", short],
                        created_by=short,
                        error_message=text,
                        outcome={"action_type": short, text: {text: [text]}},
                        suggestions=[text],
                    )
                ],
                actor="".join(char for char in short if char.isprintable()),
            )
    return ids


async def test_hostile_text_is_shown_as_text(
    open_page: Opener, scratch: Site, hostile: list[str], shots: Path
) -> None:
    for size in ((1440, 900), (390, 844)):
        page = await open_page("tasks?service=hostile", at=scratch, size=size)
        assert await page.locator("[data-task]").count() == len(TEXTS)
        await page.screenshot(path=shots / f"hostile-{size[0]}.png")
        for id_, text in zip(hostile, TEXTS, strict=True):
            await page.locator(f"[data-task='{id_}']").click()
            await page.wait_for_selector(".panel .around")
            await settled(page)
            assert await page.locator(".panel .error-text").text_content() == text
            assert await page.evaluate(SIDEWAYS) == [], text[:40]
            await page.keyboard.press("Escape")
            await page.wait_for_selector(".panel", state="detached")
        assert await page.evaluate("window.hit") is None
        assert await page.locator("#page :is(script, iframe, img)").count() == 0


def test_no_module_makes_html_of_text() -> None:
    folder = Path(__file__).parents[2] / "audit" / "web" / "static" / "page"
    ways = ("innerHTML", "outerHTML", "insertAdjacentHTML", "unsafeHTML", "document.write", "eval(")
    found = [
        f"{file.name}: {way}"
        for file in folder.rglob("*.js")
        for way in ways
        if way in file.read_text()
    ]
    assert found == []
