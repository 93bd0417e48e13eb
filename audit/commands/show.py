"""`audit show`: one task, and who changed it, what and when."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated, Any, Final
from uuid import UUID

import typer

from audit.commands.options import with_option_groups
from audit.commands.page_url import task_url
from audit.commands.place import Where
from audit.commands.printing import Rows, Show
from audit.commands.rendering.json_lines import elements
from audit.commands.rendering.records import Output
from audit.commands.rendering.task import EVENT_COLUMNS, Timeline, events_of, task_lines
from audit.commands.rendering.tasks import ALL_COLUMNS
from audit.commands.source import run_with_source

if TYPE_CHECKING:
    from audit.commands.rendering.screen import Screen
    from audit.commands.source import Source

_PAGE: Final = "1000"
_NO_EVENTS: Final = (
    "no events: the task was recorded before the event log began, and `audit log backfill` has not"
    " added it"
)

TaskId = Annotated[UUID, typer.Argument(help="The id of the task.", show_default=False)]


@with_option_groups
def show(
    task_id: TaskId,
    show: Show,
    where: Where,
    changes: Annotated[
        bool,
        typer.Option("--changes", help="Show each event of the task: who changed what, and when."),
    ] = False,
) -> None:
    """Show a task and its timeline.

    A table shortens the values that an event changed; json, ndjson, csv and tsv have them whole.
    With --changes, these forms have the events of the task instead of the task.
    """
    form = show.form
    if changes:
        show.refuse(Output.IDS)
    place = where.place()
    zone = show.zone(place.tz)
    show.chosen(EVENT_COLUMNS if changes else ALL_COLUMNS)

    async def work(source: Source) -> None:
        with show.screen() as screen:
            if form is Output.JSON:
                body = await (_history if changes else _task)(source, task_id)
                screen.write(show.look.data(body))
                return
            ((text, task),) = elements(await source.get_task(task_id))
            if show.is_drawn:
                link = task_url(place.url, str(task_id))
                for line in [*task_lines(task, show.look, zone, link), ""]:
                    screen.write(line + "\n")
            if changes or show.is_drawn:
                timeline = Timeline(show.look, zone, has_changes=changes)
                await _write_events(
                    source,
                    task_id,
                    Rows(show, screen, EVENT_COLUMNS, timeline.lines),
                    screen if show.is_drawn else None,
                )
            else:
                Rows(show, screen, ALL_COLUMNS).write([(text, task)])

    run_with_source(work, place)


async def pages_of_events(source: Source, task_id: UUID) -> AsyncIterator[list[tuple[str, Any]]]:
    """Yield the events of a task, oldest first, page by page."""
    params = {"limit": _PAGE}
    while True:
        events, cursor = events_of(await source.get_history(task_id, params))
        yield events
        if cursor is None:
            return
        params["cursor"] = cursor


async def _write_events(source: Source, task_id: UUID, rows: Rows, screen: Screen | None) -> None:
    is_empty = True
    async for events in pages_of_events(source, task_id):
        rows.write(events)
        is_empty = is_empty and not events
    if is_empty and screen is not None:
        screen.write(_NO_EVENTS + "\n")


async def _task(source: Source, task_id: UUID) -> str:
    return await source.get_task(task_id) + "\n"


async def _history(source: Source, task_id: UUID) -> str:
    """Return all pages of a history as one: the body of the service, if there is one page."""
    texts = [",".join(text for text, _ in page) async for page in pages_of_events(source, task_id)]
    events = ",".join(filter(None, texts))
    return f'{{"task_id":"{task_id}","events":[{events}],"next_cursor":null}}\n'
