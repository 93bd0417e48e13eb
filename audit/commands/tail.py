"""`audit tail`: follows the changes of all tasks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from audit.commands.filters import ChangeFilters
from audit.commands.options import with_option_groups
from audit.commands.output import note
from audit.commands.place import Where
from audit.commands.position_file import PositionFile
from audit.commands.printing import Rows, Show
from audit.commands.rendering.changes import CHANGE_COLUMNS, ChangeLines
from audit.commands.rendering.json_lines import elements
from audit.commands.rendering.records import Output
from audit.commands.source import run_with_source
from audit.errors import Unavailable
from audit.history.json_text import members

if TYPE_CHECKING:
    from audit.commands.rendering.screen import Screen
    from audit.commands.source import Params, Source

_NOW: Final = "now"
_START: Final = "start"
_LIMIT: Final = 1000
_WAIT_SECONDS: Final = 20
#: How long to wait after a service that has answered before did not answer five times.
_PAUSE_SECONDS: Final = 5


def _validate_start(value: str) -> str:
    if value not in (_NOW, _START) and not (value.isascii() and value.isdigit()):
        raise typer.BadParameter("must be now, start or a position, which is a whole number")
    return "0" if value == _START else value


@with_option_groups
def tail(
    filters: ChangeFilters,
    show: Show,
    where: Where,
    start: Annotated[
        str,
        typer.Option(
            "--from", callback=_validate_start, help="Where to begin: now, start or a position."
        ),
    ] = _NOW,
    position_file: Annotated[
        Path | None,
        typer.Option(
            "--position-file",
            dir_okay=False,
            help="File that keeps the position. If it holds one, continue there.",
        ),
    ] = None,
) -> None:
    """Follow the changes of all tasks.

    Prints each once, in order, until interrupted. With --position-file, the next run continues
    where this one ended, however it ended.
    """
    show.refuse(Output.JSON)
    show.chosen(CHANGE_COLUMNS)
    file = None if position_file is None else PositionFile(position_file)
    known = None if file is None else file.read()
    place = where.place()
    zone = show.zone(place.tz)

    async def work(source: Source) -> None:
        with show.screen(may_page=False) as screen:
            rows = Rows(show, screen, CHANGE_COLUMNS, ChangeLines(show.look, zone).lines)
            printer = _Printer(rows, screen, file)
            position = start if known is None else str(known)
            with printer.saving():
                await _follow(source, printer, filters.params(), position)

    run_with_source(work, place)


async def _follow(source: Source, printer: _Printer, filters: Params, position: str) -> None:
    """Print changes without end."""
    # The first request does not wait, so that `now` becomes a position that can be saved.
    wait = 0
    has_answered = False
    while True:
        given = {"position": position, "limit": str(_LIMIT), "wait": str(wait)}
        try:
            body = await source.get_changes({**filters, **given})
        except Unavailable as problem:
            if not has_answered:
                raise
            note(f"{problem.detail}; still trying")
            await asyncio.sleep(_PAUSE_SECONDS)
            continue
        has_answered = True
        answer = dict(members(body))
        position = answer["position"]
        printer.print(list(elements(answer["changes"])), int(position))
        wait = _WAIT_SECONDS


class _Printer:
    """Prints changes, and saves the position after each of them."""

    def __init__(self, rows: Rows, screen: Screen, file: PositionFile | None) -> None:
        self._rows = rows
        self._screen = screen
        self._file = file
        self._printed: int | None = None

    def print(self, changes: list[tuple[str, Any]], position: int) -> None:
        """Print changes, and save the position after them."""
        if self._file is None:
            self._rows.write(changes)
            self._screen.flush()
            return
        for change in changes:
            self._rows.write([change])
            self._printed = int(change[1]["n"]) + 1
            self._screen.flush()
            self._file.save(self._printed)
        self._printed = position
        self._file.save(position)

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Save the position of the last change that was printed, also if a signal comes."""
        try:
            yield
        finally:
            if self._file is not None and self._printed is not None:
                self._screen.flush()
                self._file.save(self._printed, is_last=True)
