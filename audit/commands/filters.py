"""The options that choose tasks. They have the names of the parameters of the service."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer

from audit.commands.output import note
from audit.history.states import State

if TYPE_CHECKING:
    from audit.commands.rendering.times import Zone

_TIME = "an RFC 3339 time, a date or a date and a time in --tz, or 90m, 12h, 7d, 2w for before now"


@dataclass(frozen=True)
class MemberFilters:
    """The filters that do not name a time. They combine with AND."""

    service: Annotated[
        list[str] | None,
        typer.Option(
            "--service",
            metavar="NAME",
            help="Tasks that touched this service; repeated: all of them.",
        ),
    ] = None
    intent: Annotated[
        list[str] | None,
        typer.Option(
            "--intent", metavar="NAME", help="Tasks with this intent; repeated: one of them."
        ),
    ] = None
    created_by: Annotated[
        str | None,
        typer.Option(
            "--created-by", metavar="NAME", help="Tasks that this person or program created."
        ),
    ] = None
    project_id: Annotated[
        UUID | None, typer.Option("--project-id", metavar="UUID", help="Tasks of this project.")
    ] = None
    outcome: Annotated[
        str | None,
        typer.Option(
            "--outcome", metavar="JSON", help="JSON object that the outcome of the task contains."
        ),
    ] = None

    def members(self) -> dict[str, str | list[str]]:
        """Return these filters as parameters of a route."""
        return _given(
            {
                "service": self.service,
                "intent": self.intent,
                "created_by": self.created_by,
                "project_id": None if self.project_id is None else str(self.project_id),
                "outcome": self.outcome,
            }
        )


@dataclass(frozen=True)
class ChangeFilters(MemberFilters):
    """The filters of `/changes`."""

    status: Annotated[
        list[State] | None,
        typer.Option("--status", help="Changes to this state; repeated: to one of them."),
    ] = None

    def params(self) -> dict[str, str | list[str]]:
        """Return the filters as parameters of the route."""
        return {**self.members(), **_given({"status": [*map(str, self.status or ())]})}


@dataclass(frozen=True)
class Filters(MemberFilters):
    """The filters of `/failures`, which all lists share."""

    last: Annotated[
        str | None,
        typer.Option(
            "--last", metavar="SPAN", help="Tasks created in the last 15m, 24h, 7d or 8w."
        ),
    ] = None
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="TIME", help=f"Tasks created at or after {_TIME}."),
    ] = None
    until: Annotated[
        str | None,
        typer.Option("--until", metavar="TIME", help="Tasks created before a time, as in --since."),
    ] = None

    def params(self, zone: Zone) -> dict[str, str | list[str]]:
        """Return the filters as parameters of a route."""
        times = {
            "last": self.last,
            "since": self._time("--since", self.since, zone),
            "until": self._time("--until", self.until, zone),
        }
        return {**self.members(), **_given(times)}

    def _time(self, option: str, text: str | None, zone: Zone) -> str | None:
        """Return a time as the service reads it. On a terminal, a note says which time that is."""
        from audit.commands.rendering.times import read_span, utc_text

        if text is None:
            return None
        try:
            span = read_span(text)
            time = zone.read(text) if span is None else datetime.now(UTC) - span
            made = None if time is None else utc_text(time)
        except (ValueError, OverflowError) as wrong:
            raise typer.BadParameter(f"{option}: {wrong}") from None
        if made is None:
            if not text[:1].isdigit():
                raise typer.BadParameter(f"{option}: must be {_TIME}")
            return text
        if sys.stderr.isatty():
            note(f"{option[2:]} {made}")
        return made


@dataclass(frozen=True)
class StatusFilters(Filters):
    """The filters of `/query`."""

    status: Annotated[
        list[State] | None,
        typer.Option("--status", help="Tasks in this state; repeated: in one of them."),
    ] = None

    def params(self, zone: Zone) -> dict[str, str | list[str]]:
        """Return the filters as parameters of a route."""
        return {**super().params(zone), **_given({"status": [*map(str, self.status or ())]})}


def _given(options: Mapping[str, str | list[str] | None]) -> dict[str, str | list[str]]:
    """Return the options that were given. An empty text is one, which the service refuses."""
    return {name: value for name, value in options.items() if value is not None and value != []}
