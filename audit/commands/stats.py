"""`audit stats`: how many tasks, when, of which kind, and how long they took."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from audit.commands.filters import StatusFilters
from audit.commands.options import with_option_groups
from audit.commands.output import note
from audit.commands.page_url import list_url
from audit.commands.place import Where
from audit.commands.printing import Rows, Show
from audit.commands.rendering.json_lines import elements, parsed
from audit.commands.rendering.records import Column, Output
from audit.commands.rendering.statistics import (
    BUCKET_COLUMNS,
    DURATION_COLUMNS,
    FACET_COLUMNS,
    duration_lines,
    duration_rows,
    facet_lines,
    facet_rows,
    histogram_lines,
)
from audit.commands.source import run_with_source
from audit.history.json_text import members

if TYPE_CHECKING:
    from audit.commands.rendering.screen import Look
    from audit.commands.rendering.times import Zone
    from audit.commands.source import Source

#: Words for intervals of the service.
_INTERVALS: Final = {
    "minute": "1m",
    "hour": "1h",
    "day": "1d",
    "week": "1w",
    "month": "1mo",
    "year": "1y",
}
#: The most bars that fit a page of a terminal.
_BARS_ON_A_SCREEN: Final = "32"


class Facet(StrEnum):
    """What the values of tasks are counted by."""

    STATUS = "status"
    SERVICE = "service"
    INTENT = "intent"
    CREATED_BY = "created_by"
    PROJECT_ID = "project_id"


@with_option_groups
def stats(
    filters: StatusFilters,
    show: Show,
    where: Where,
    by: Annotated[
        str | None,
        typer.Option(
            "--by",
            metavar="INTERVAL",
            help="Length of a bar: auto, minute, hour, day, week, month or year, or one of the"
            " service's intervals, such as 15m. With --durations also intent.",
            show_default="auto",
        ),
    ] = None,
    facet: Annotated[
        list[Facet] | None,
        typer.Option("--facet", help="Count the most frequent values instead. Repeatable."),
    ] = None,
    top: Annotated[
        int | None,
        typer.Option("--top", min=1, max=100, metavar="N", help="Number of values of --facet."),
    ] = None,
    durations: Annotated[
        bool, typer.Option("--durations", help="Show how long tasks took, in percentiles.")
    ] = False,
) -> None:
    """Count the tasks that match all filters, by time and state.

    Bars begin at midnight, at the full hour and so on in the time zone of --tz.
    """
    if facet and (durations or by):
        raise typer.BadParameter("--facet: not together with --by or --durations")
    if top is not None and not facet:
        raise typer.BadParameter("--top: only together with --facet")
    show.refuse(Output.IDS)
    place = where.place()
    zone = show.zone(place.tz)
    params = filters.params(zone)
    if facet:
        statistic: _Statistic = _Facets(list(map(str, facet)), top)
    elif durations:
        statistic = _Durations(by, zone)
    else:
        statistic = _Histogram(by, zone, is_drawn=show.is_drawn)
    interval = statistic.params.get("interval")
    link = list_url(
        place.url, "query", params, tz=show.tz, interval=None if interval is None else str(interval)
    )
    show.chosen(statistic.columns)

    async def work(source: Source) -> None:
        body = await source.get_statistics(statistic.name, {**params, **statistic.params})
        with show.screen() as screen:
            if show.form is Output.JSON:
                screen.write(show.look.data(body + "\n"))
            elif show.is_drawn:
                for line in statistic.lines(parsed(body), show.look):
                    screen.write(line + "\n")
            else:
                Rows(show, screen, statistic.columns).write(statistic.rows(body))

    run_with_source(work, place)
    if show.is_for_people and link:
        note(link)


def _interval(by: str) -> str:
    """Return the interval of the service that a word means."""
    from audit.history.bars import AUTO, LENGTHS

    interval = _INTERVALS.get(by, by)
    if interval not in {AUTO, *LENGTHS}:
        names = ", ".join((AUTO, *_INTERVALS, *LENGTHS))
        raise typer.BadParameter(f"--by: must be one of {names}; with --durations also intent")
    return interval


class _Statistic:
    """One of the routes of statistics: its parameters, and how its body is shown."""

    name: str
    columns: Sequence[Column[Any]]
    params: dict[str, str | list[str]]

    def rows(self, body: str) -> Iterable[tuple[str, Any]]:
        """Return the rows for programs, as JSON text and as values."""
        raise NotImplementedError

    def lines(self, document: Any, look: Look) -> Iterator[str]:
        """Yield the lines for people."""
        raise NotImplementedError


class _Histogram(_Statistic):
    name = "histogram"
    columns = BUCKET_COLUMNS

    def __init__(self, by: str | None, zone: Zone, *, is_drawn: bool) -> None:
        self.params = {"tz": zone.iana_name}
        if by is not None and by != "auto":
            self.params["interval"] = _interval(by)
        elif is_drawn:
            self.params["buckets"] = _BARS_ON_A_SCREEN

    def rows(self, body: str) -> Iterable[tuple[str, Any]]:
        return elements(dict(members(body))["buckets"])

    def lines(self, document: Any, look: Look) -> Iterator[str]:
        from audit.commands.rendering.times import Zone

        return histogram_lines(document, look, Zone(document["tz"]))


class _Facets(_Statistic):
    name = "facets"
    columns = FACET_COLUMNS

    def __init__(self, facets: list[str], top: int | None) -> None:
        self.params = {"facet": list(dict.fromkeys(facets))}
        if top is not None:
            self.params["top"] = str(top)

    def rows(self, body: str) -> Iterable[tuple[str, Any]]:
        for row in facet_rows(parsed(body)):
            value = {**row, "total": int(row["total"])}
            yield json.dumps(value, ensure_ascii=False), row

    def lines(self, document: Any, look: Look) -> Iterator[str]:
        return facet_lines(document, look)


class _Durations(_Statistic):
    name = "durations"
    columns = DURATION_COLUMNS

    def __init__(self, by: str | None, zone: Zone) -> None:
        self.params = {}
        self.zone = zone
        if by == "intent":
            self.params = {"by": "intent"}
        elif by is not None:
            self.params = {"by": "interval", "interval": _interval(by), "tz": zone.iana_name}

    def rows(self, body: str) -> Iterable[tuple[str, Any]]:
        whole = dict(members(body))
        first, *_ = duration_rows(parsed(body))
        yield "{" + ",".join(f'"{name}":{whole[name]}' for name in first) + "}", first
        yield from elements(whole.get("groups", "[]"))

    def lines(self, document: Any, look: Look) -> Iterator[str]:
        return duration_lines(document, look, self.zone)
