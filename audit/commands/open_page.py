"""`audit open`: the web page that shows the same as a command."""

from __future__ import annotations

import os
import sys
from typing import Annotated
from uuid import UUID

import typer

from audit.commands.filters import StatusFilters
from audit.commands.options import with_option_groups
from audit.commands.output import note, print_line
from audit.commands.page_url import list_url, task_url
from audit.commands.place import Where
from audit.commands.printing import InZone


@with_option_groups
def open_page(
    filters: StatusFilters,
    zone: InZone,
    where: Where,
    task_id: Annotated[
        UUID | None, typer.Argument(help="The id of a task.", show_default=False)
    ] = None,
    browser: Annotated[
        bool | None,
        typer.Option(
            "--browser/--no-browser",
            help="Whether to open a browser.",
            show_default="on a terminal of a desktop",
        ),
    ] = None,
) -> None:
    """Print the URL of the web page, and open it.

    Without filters and without a task, it shows the failures of the last 7 days.
    """
    place = where.place()
    if place.url is None:
        raise typer.BadParameter("a database has no page: give --url or --profile")
    params = filters.params(zone.zone(place.tz))
    if task_id is not None and (params or zone.tz):
        raise typer.BadParameter("give either the id of a task or filters")
    if task_id is not None:
        url = task_url(place.url, str(task_id))
    else:
        url = f"{place.url.rstrip('/')}/"
        if params or zone.tz:
            url = list_url(place.url, "query", params, tz=zone.tz)
    print_line(url or "")
    sys.stdout.flush()
    if browser or (browser is None and sys.stdout.isatty() and _has_desktop()):
        import webbrowser

        if not webbrowser.open(url or ""):
            note("no browser was found")


def _has_desktop() -> bool:
    """Whether a browser would open a window, instead of taking the terminal."""
    variables = ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY")
    return sys.platform in {"darwin", "win32"} or any(map(os.environ.get, variables))
