"""`audit history`: shows who changed a task, what, and when."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from audit.commands.database import run_with_pool
from audit.commands.options import DataDir, Dsn, Json, ReadKey, ReadUrl, settings_from
from audit.commands.output import print_line, print_table

if TYPE_CHECKING:
    from audit.history.events import HistoryPage, TaskEvent
    from audit.postgres.pool import Pool

    #: Returns the page of a task's history that begins at a cursor.
    _GetPage = Callable[[str | None], Awaitable[HistoryPage]]

_COLUMNS = ("position", "at", "event", "status", "actor", "role", "request", "changed")
_LONGEST_VALUE = 60
_PAGE = 1000


def history(
    task_id: Annotated[UUID, typer.Argument(help="The id of the task.", show_default=False)],
    url: ReadUrl = None,
    key: ReadKey = None,
    as_json: Json = False,
    dsn: Dsn = None,
    data_dir: DataDir = None,
) -> None:
    """Show all events of a task, oldest first: who changed what, and when.

    The table shortens long values. --json prints them whole.
    """
    show = _print_json if as_json else _print_table

    if url is not None:
        from audit.commands.history_url import service_pages
        from audit.process.loop import run

        async def show_from_service() -> None:
            async with service_pages(url, task_id, key) as get_page:
                await show(_pages(get_page))

        run(show_from_service())
        return

    async def show_from_database(pool: Pool) -> None:
        from audit.history.service import AuditService

        service = AuditService(pool)

        async def get_page(cursor: str | None) -> HistoryPage:
            return await service.get_history(task_id, _PAGE, cursor=cursor)

        await show(_pages(get_page))

    run_with_pool(show_from_database, settings_from(dsn=dsn, data_dir=data_dir))


async def _pages(get_page: _GetPage) -> AsyncGenerator[HistoryPage]:
    cursor = None
    while True:
        page = await get_page(cursor)
        yield page
        cursor = page.next_cursor
        if cursor is None:
            return


async def _print_json(pages: AsyncGenerator[HistoryPage]) -> None:
    """Print one array of all events, as PostgreSQL wrote them: numbers keep all their digits."""
    separator = "["
    async for page in pages:
        if events := page.events_json.strip()[1:-1].strip():
            sys.stdout.write(f"{separator}{events}")
            separator = ",\n"
    print_line("[]" if separator == "[" else "]")


async def _print_table(pages: AsyncGenerator[HistoryPage]) -> None:
    rows = [tuple(_cells(event)) async for page in pages for event in page.events]
    if rows:
        print_table(_COLUMNS, rows)
    else:
        print_line(
            "no events: the task was recorded before the event log began, and `audit log backfill`"
            " has not added it"
        )


def _cells(event: TaskEvent) -> Iterator[str]:
    yield "-" if event.position is None else str(event.position)
    yield f"{event.at:%Y-%m-%dT%H:%M:%S.%f}Z"
    yield event.kind
    yield event.status
    yield event.actor or "-"
    yield event.role
    yield event.request_id or "-"
    yield ", ".join(
        f"{name}: {_short(change.before)} -> {_short(change.after)}"
        for name, change in event.changed.items()
    )


def _short(value: Any) -> str:
    """Return a value as JSON, or the beginning of it."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."
