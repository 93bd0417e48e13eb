"""`audit failures`, `audit query` and `audit service`: lists of tasks for people."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from audit.commands.exit_codes import ExitCode
from audit.commands.filters import Filters, StatusFilters
from audit.commands.options import with_option_groups
from audit.commands.output import note
from audit.commands.page_url import list_url, task_url
from audit.commands.place import Where
from audit.commands.printing import Rows, Show
from audit.commands.rendering.json_lines import elements
from audit.commands.rendering.records import Output
from audit.commands.rendering.tasks import COLUMNS, TaskTable
from audit.commands.source import run_with_source
from audit.history.json_text import members

if TYPE_CHECKING:
    from audit.commands.rendering.screen import Screen
    from audit.commands.source import Params, Source

_DEFAULT_LIMIT: Final = 50
_PAGE: Final = 1000
#: The first page of a long list is short, so that its first line appears at once.
_FIRST_PAGE: Final = 100


@dataclass(frozen=True)
class Amount:
    """The options that say how many tasks to show."""

    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            min=1,
            metavar="N",
            help="Number of tasks to show, the newest.",
            show_default=str(_DEFAULT_LIMIT),
        ),
    ] = None
    every: Annotated[bool, typer.Option("--all", help="Show all tasks.")] = False

    def most(self) -> int | None:
        """Return the most tasks to show; None for all of them."""
        if self.every and self.limit is not None:
            raise typer.BadParameter("--limit: not together with --all")
        return None if self.every else self.limit or _DEFAULT_LIMIT


ExitStatus = Annotated[
    bool, typer.Option("--exit-status", help="End with 1 if there is any such task.")
]


@with_option_groups
def failures(
    filters: Filters, amount: Amount, show: Show, where: Where, exit_status: ExitStatus = False
) -> None:
    """List failed tasks, newest first.

    Without a time, they are those of the last 7 days.
    """
    _list("failures", filters, amount, show, where, exit_status=exit_status)


@with_option_groups
def query(
    filters: StatusFilters,
    amount: Amount,
    show: Show,
    where: Where,
    exit_status: ExitStatus = False,
) -> None:
    """List the tasks that match all filters, newest first."""
    _list("query", filters, amount, show, where, exit_status=exit_status)


@with_option_groups
def service(
    name: Annotated[str, typer.Argument(help="The name of the service.", show_default=False)],
    filters: StatusFilters,
    amount: Amount,
    show: Show,
    where: Where,
    exit_status: ExitStatus = False,
) -> None:
    """List the tasks that touched a service, newest first."""
    _list("query", filters, amount, show, where, service=name, exit_status=exit_status)


@dataclass(frozen=True)
class _Page:
    """A page of a list, as JSON text. `rows` are its tasks, each as text and as a value."""

    tasks: str
    total: str
    offset: str
    next_cursor: str
    rows: list[tuple[str, Any]]

    @property
    def has_more(self) -> bool:
        return self.next_cursor != "null"


async def _pages(
    source: Source, route: str, params: Params, most: int | None, *, is_counted: bool
) -> AsyncIterator[_Page]:
    """Yield the pages of a list until there are as many tasks as were asked for."""
    left = most
    size = _FIRST_PAGE
    query = {**params, "total": "exact" if is_counted else "none"}
    while True:
        query["limit"] = str(size if left is None else min(left, _PAGE))
        page = _read(await source.list_tasks(route, query))
        yield page
        if left is not None:
            left -= len(page.rows)
        if not page.has_more or left == 0:
            return
        size = _PAGE
        query |= {"total": "none", "cursor": page.next_cursor[1:-1]}


def _read(body: str) -> _Page:
    given = dict(members(body))
    rows = list(elements(given["tasks"]))
    return _Page(given["tasks"], given["total"], given["offset"], given["next_cursor"], rows)


def _list(
    route: str,
    filters: Filters,
    amount: Amount,
    show: Show,
    where: Where,
    *,
    service: str | None = None,
    exit_status: bool = False,
) -> None:
    """Show a list. With `exit_status`, end with 1 if there is any task."""
    form = show.form
    most = amount.most()
    show.chosen(COLUMNS)
    place = where.place()
    zone = show.zone(place.tz)
    params = filters.params(zone)
    if service is not None:
        params["service"] = list(dict.fromkeys([service, *(filters.service or [])]))
    link = list_url(place.url, route, params, tz=show.tz)

    async def work(source: Source) -> _Shown:
        is_counted = most is not None or form is Output.JSON
        pages = _pages(source, route, params, most, is_counted=is_counted)
        with show.screen() as screen:
            if form is Output.JSON:
                return await _write_json(pages, most, show, screen)
            table = TaskTable(
                show.look, zone, datetime.now(UTC), lambda task_id: task_url(place.url, task_id)
            )
            lines = table.wide_lines if form is Output.WIDE else table.lines
            rows = Rows(show, screen, COLUMNS, lines)
            shown = _Shown()
            async for page in pages:
                rows.write(page.rows)
                shown.add(page)
            return shown

    shown = run_with_source(work, place)
    shown.note(link if show.is_for_people else None)
    if exit_status and shown.tasks:
        raise typer.Exit(ExitCode.NO)


@dataclass
class _Shown:
    """How much of a list was shown."""

    tasks: int = 0
    total: str = "null"
    has_more: bool = False

    def add(self, page: _Page) -> None:
        if not self.tasks:
            self.total = page.total
        self.tasks += len(page.rows)
        self.has_more = page.has_more

    def note(self, link: str | None) -> None:
        """Say on standard error if there are more tasks; to people, also how many were shown."""
        if self.has_more:
            note(f"{self.tasks:,} of {int(self.total):,} tasks; --all shows all, or --limit N")
        elif link is not None or sys.stderr.isatty():
            note(f"{self.tasks:,} task{'' if self.tasks == 1 else 's'}")
        if link is not None:
            note(link)


async def _write_json(
    pages: AsyncIterator[_Page], most: int | None, show: Show, screen: Screen
) -> _Shown:
    """Write all pages as one page of the service. A single page is its body, byte by byte."""
    shown = _Shown()
    offset = cursor = "null"
    separator = '{"tasks":['
    async for page in pages:
        if not shown.tasks:
            offset = page.offset
        cursor = page.next_cursor
        shown.add(page)
        inner = page.tasks.strip()[1:-1]
        if inner or separator != ",":
            screen.write(show.look.data(separator + inner))
            separator = ","
    limit = shown.tasks if most is None else most
    screen.write(
        f'],"total":{shown.total},"limit":{limit},"offset":{offset},"next_cursor":{cursor}}}\n'
    )
    return shown
