"""`audit watch`: follows one task until it ends."""

from __future__ import annotations

import asyncio
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, Final
from uuid import UUID

import typer

from audit.commands.exit_codes import ExitCode
from audit.commands.options import Timeout, seconds_of, with_option_groups
from audit.commands.output import note
from audit.commands.place import Where
from audit.commands.printing import Rows, Show
from audit.commands.rendering.json_lines import parsed
from audit.commands.rendering.records import Output
from audit.commands.rendering.task import EVENT_COLUMNS, Timeline
from audit.commands.show import TaskId, pages_of_events
from audit.commands.source import run_with_source
from audit.errors import TaskNotFound, Unavailable
from audit.history.states import State

if TYPE_CHECKING:
    from audit.commands.rendering.screen import Screen
    from audit.commands.source import Source

_POLL_SECONDS: Final = 1
#: How long a service or a database that has answered before may not answer.
_PATIENCE_SECONDS: Final = 120
_ENDED: Final = {str(state) for state in State if state.is_terminal}


@with_option_groups
def watch(
    task_id: TaskId,
    show: Show,
    where: Where,
    timeout: Timeout = None,
    wait_for: Annotated[
        bool, typer.Option("--wait-for", help="Wait for a task that is not recorded yet.")
    ] = False,
    exit_status: Annotated[
        bool,
        typer.Option(
            "--exit-status/--no-exit-status",
            help="End with 1 if the task fails or is rejected.",
        ),
    ] = True,
) -> None:
    """Follow a task to its end.

    Shows its events, and waits for further ones. Ends with 0 if the task is completed, 1 if it
    failed or was rejected, 66 if there is no such task, and 124 after --timeout.
    """
    show.refuse(Output.JSON, Output.IDS)
    show.chosen(EVENT_COLUMNS)
    seconds = seconds_of(timeout)
    place = where.place()
    zone = show.zone(place.tz)

    async def work(source: Source) -> str:
        with show.screen(may_page=False) as screen:
            timeline = Timeline(show.look, zone, has_changes=False)
            rows = Rows(show, screen, EVENT_COLUMNS, timeline.lines)
            follower = _Follower(source, task_id, rows, screen, wait_for=wait_for)
            async with asyncio.timeout(seconds) if seconds else nullcontext():
                return await follower.follow()

    try:
        status = run_with_source(work, place)
    except TimeoutError:
        note(f"the task has not ended within {timeout}")
        raise typer.Exit(ExitCode.TIMEOUT) from None
    if exit_status and status != State.COMPLETED:
        raise typer.Exit(ExitCode.NO)


class _Follower:
    """Asks for a task again and again, and shows its new events."""

    def __init__(
        self, source: Source, task_id: UUID, rows: Rows, screen: Screen, *, wait_for: bool
    ) -> None:
        self._source = source
        self._task_id = task_id
        self._rows = rows
        self._screen = screen
        self._waits_for_task = wait_for
        self._shown = 0
        self._answered_at: float | None = None
        self._noted = ""

    async def follow(self) -> str:
        """Return the state in which the task has ended.

        Raises:
            TaskNotFound: there is no such task.
            Unavailable: it was not possible to ask for too long.
        """
        known = ""
        while True:
            try:
                document = await self._source.get_task(self._task_id)
                self._answered_at = time.monotonic()
                if document != known:
                    await self._show_new_events()
                    known = document
                status = str(parsed(document)["status"])
                if status in _ENDED:
                    return status
                self._noted = ""
            except TaskNotFound:
                self._answered_at = time.monotonic()
                if not self._waits_for_task or known:
                    raise
                self._note_once("waiting until the task is recorded")
            except Unavailable as problem:
                if not self._is_patient():
                    raise
                self._note_once(f"{problem.detail}; still trying")
            await asyncio.sleep(_POLL_SECONDS)

    async def _show_new_events(self) -> None:
        number = 0
        async for events in pages_of_events(self._source, self._task_id):
            new = events[max(0, self._shown - number) :]
            number += len(events)
            self._rows.write(new)
            self._screen.flush()
            self._shown = max(self._shown, number)

    def _is_patient(self) -> bool:
        last = self._answered_at
        return last is not None and time.monotonic() - last < _PATIENCE_SECONDS

    def _note_once(self, text: str) -> None:
        if text != self._noted:
            note(text)
        self._noted = text
