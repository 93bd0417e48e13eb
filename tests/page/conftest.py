"""The page in a real browser: Debian's Chromium, the service as a process, and a real PostgreSQL.

Each test gets a browser context of its own. Whatever the test checks, it fails if the page logged
an error, broke its Content Security Policy, or asked another origin for anything.
"""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

from audit.history import demo
from audit.history.service import AuditService
from tests.conftest import execute, of_database
from tests.needs import needs, needs_installed
from tests.processes import serving

if TYPE_CHECKING:
    from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Page

FOLDER = Path(__file__).parent
MODULES = FOLDER.parents[1] / ".venv" / "page" / "node_modules"
AXE = MODULES / "axe-core" / "axe.min.js"

#: The history that the tests know. It ends at a fixed time, so the same tasks are always in it.
UNTIL = datetime(2026, 11, 20, tzinfo=UTC)
DAYS = 60
TASKS = 6_000
#: Newer tasks, for windows that end now.
RECENT_TASKS = 400
RECENT_DAYS = 2

#: One worker is enough for one browser, and several services share the connections of PostgreSQL.
SMALL = ("--workers", "1", "--pool-size", "6")
WIDE = (1440, 900)
NARROW = (390, 844)
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # Nothing but the service can be reached, whatever the browser wants.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run all tests of the page in one event loop, because they share a browser."""
    installed = needs_installed("axe-core", ".venv/installed-page", found=AXE.exists())
    for item in items:
        if item.path.parent == FOLDER:
            item.add_marker(installed)
            if item.get_closest_marker("asyncio"):
                item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for name, text in report.user_properties:
            if name == "page" and report.when == "call":
                terminalreporter.write_line(str(text))


@dataclass(frozen=True)
class Site:
    """A running service, with its database."""

    url: str
    dsn: str

    def __truediv__(self, path: str) -> str:
        return f"{self.url}/{path}"


@dataclass
class Watched:
    """What the pages of a context did that they should not."""

    origin: str
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def watch(self, context: BrowserContext) -> None:
        context.on("console", self._console)
        context.on("weberror", lambda error: self.complaints.append(f"uncaught: {error.error}"))
        context.on("request", lambda request: self._request(request.url))

    def _console(self, message: ConsoleMessage) -> None:
        # The browser itself logs each answer that is no success. Tests look at those of the API.
        answered = message.text.startswith("Failed to load resource")
        if message.type in {"error", "warning"} and not (
            answered and "/assets/" not in message.location["url"]
        ):
            self.complaints.append(f"{message.type}: {message.text}")

    def _request(self, url: str) -> None:
        self.requests.append(url)
        parts = urlsplit(url)
        if (
            parts.scheme not in {"blob", "data"}
            and f"{parts.scheme}://{parts.netloc}" != self.origin
        ):
            self.complaints.append(f"request to another origin: {url}")


Opener = Callable[..., Awaitable["Page"]]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    from playwright.async_api import async_playwright

    chromium = needs("chromium")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=str(chromium), args=ARGUMENTS, headless=True
        )
        yield browser
        await browser.close()


_names = (f"page_{number}" for number in itertools.count())


@pytest.fixture(scope="session")
def databases(postgres: str, template: str) -> Iterator[Callable[[], str]]:
    """Make migrated databases that live as long as the session."""
    made: list[str] = []

    def make() -> str:
        name = next(_names)
        execute(postgres, f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
        made.append(name)
        return of_database(postgres, name)

    yield make
    for name in made:
        execute(postgres, f"DROP DATABASE {name} WITH (FORCE)")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def site(databases: Callable[[], str]) -> AsyncIterator[Site]:
    """The service on the history that the tests know. Tests only read it."""
    dsn = databases()
    now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    async with AuditService.open(dsn) as service:
        for history in (
            demo.generate(TASKS, days=DAYS, until=UNTIL, seed=1),
            demo.generate(RECENT_TASKS, days=RECENT_DAYS, until=now, seed=2),
        ):
            await service.record(history, actor="importer")
        await record_story(service)
        while await service.upkeep.sequence_events() or await service.upkeep.fold_counts():
            pass
    with serving("--dsn", dsn, *SMALL, log=subprocess.DEVNULL) as (_, url, _lines):
        yield Site(url, dsn)


@pytest.fixture(scope="session")
def scratch(databases: Callable[[], str]) -> Iterator[Site]:
    """The service on a history that begins empty. Tests record into it what they look at."""
    dsn = databases()
    with serving("--dsn", dsn, *SMALL, log=subprocess.DEVNULL) as (_, url, _lines):
        yield Site(url, dsn)


@pytest.fixture(scope="session")
def scratch_empty(databases: Callable[[], str]) -> Iterator[Site]:
    """The service on a history without tasks."""
    dsn = databases()
    with serving("--dsn", dsn, *SMALL, log=subprocess.DEVNULL) as (_, url, _lines):
        yield Site(url, dsn)


#: A task whose whole life is known: what the tests of the timeline look at.
STORY = "0193400a-1111-7000-8000-00000000f001"
STORY_OUTCOME = {
    "action_type": "run_playbook",
    "environment": "prod",
    "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
    "big": 12345678901234567890123,
}


async def record_story(service: AuditService) -> None:
    """Record a task and change it as an orchestrator does: pending, approved, executing, failed."""
    await service.record(
        [
            {
                "task_id": STORY,
                "request_text": "Run the playbook of the week on story",
                "created_by": "ada@example.com",
                "status": "pending",
                "created_at": "2026-11-18T07:01:16.785000Z",
                "services_touched": ["story", "ledger"],
            }
        ],
        actor="deploy-bot",
    )
    changes: list[tuple[str, dict[str, Any]]] = [
        ("grace@example.com", {"status": "approved", "approved_at": "2026-11-18T07:01:20.001000Z"}),
        ("orchestrator", {"status": "executing", "outcome": STORY_OUTCOME}),
        (
            "orchestrator",
            {
                "status": "failed",
                "completed_at": "2026-11-18T07:06:07.441000Z",
                "error_message": "health check failed: 3 of 5 replicas did not become ready",
                "outcome": {**STORY_OUTCOME, "attempts": 2},
            },
        ),
    ]
    for actor, change in changes:
        await service.update(STORY, change, actor=actor)


@pytest_asyncio.fixture(loop_scope="session")
async def open_page(browser: Browser, site: Site) -> AsyncIterator[Opener]:
    """Open pages, each in a context of its own; the test fails if one complains."""
    contexts: list[BrowserContext] = []
    watches: list[Watched] = []

    async def open_at(
        path: str = "tasks", *, at: Site | None = None, size: tuple[int, int] = WIDE,
        dark: bool = False, ready: bool = True, **options: Any,
    ) -> Page:  # fmt: skip
        where = at or site
        context = await browser.new_context(
            base_url=where.url,
            viewport={"width": size[0], "height": size[1]},
            color_scheme="dark" if dark else "light",
            reduced_motion="reduce",
            permissions=["clipboard-read", "clipboard-write"],
            **options,
        )
        context.set_default_timeout(15_000)
        contexts.append(context)
        watches.append(Watched(where.url))
        watches[-1].watch(context)
        page = await context.new_page()
        await page.goto(where / path)
        if ready:
            await settled(page)
        return page

    yield open_at
    for context in contexts:
        await context.close()
    assert [complaint for watched in watches for complaint in watched.complaints] == []


async def settled(page: Page) -> None:
    """Wait until the page shows the answers to all that it has asked."""
    await page.wait_for_selector("#page > *", state="attached")
    await page.wait_for_selector("[aria-busy=true]", state="detached")


#: What a person sees, without what may change between two looks at it.
SEEN = """() => {
  const text = (element) => element.textContent.replace(/\\s+/g, " ").trim();
  const texts = (selector) => [...document.querySelectorAll(selector)].map(text);
  return {
    url: location.pathname + location.search,
    heading: texts("h1")[0],
    tasks: [...document.querySelectorAll("[data-task]")].map((link) => link.dataset.task),
    times: texts("[data-task]"),
    chips: texts(".chip-text"),
    states: texts(".state-count"),
    bars: document.querySelectorAll(".bar").length,
    facets: texts(".facet .value"),
    panel: texts(".panel h2")[0] ?? null,
  };
}"""


async def seen(page: Page) -> dict[str, Any]:
    """Return what the page shows when all answers are there."""
    await settled(page)
    shown: dict[str, Any] = await page.evaluate(SEEN)
    return shown


async def axe(page: Page) -> list[str]:
    """Return what axe-core finds wrong on a page, in readable lines."""
    await page.evaluate(AXE.read_text())
    tags = ["wcag2a", "wcag2aa", "wcag21aa", "wcag22aa", "best-practice"]
    result = await page.evaluate(
        "runOnly => axe.run(document, {runOnly, resultTypes: ['violations']})", tags
    )
    return [
        f"{violation['id']}: {node['html'][:160]} ({node['failureSummary']})"
        for violation in result["violations"]
        for node in violation["nodes"]
    ]


@pytest.fixture
def told(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Say something in the summary of the run."""
    return lambda text: record_property("page", text)


@pytest.fixture(scope="session")
def shots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the screenshots: AUDIT_TEST_SHOTS, or a temporary one."""
    named = os.environ.get("AUDIT_TEST_SHOTS")
    folder = Path(named) if named else tmp_path_factory.mktemp("shots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
