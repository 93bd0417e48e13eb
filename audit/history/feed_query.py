"""The parameters of the feed: which changes match, and from which position on."""

from __future__ import annotations

import re
from typing import Annotated, Final

from pydantic import Field, PlainValidator

from audit.errors import Invalid
from audit.history.query import MemberFilter
from audit.history.values import Status, whole_number

#: The position of a reader that asks for the changes from now on.
NOW: Final = "now"
_MAX_POSITION: Final = 2**63 - 1
_POSITION: Final = re.compile("[0-9]{1,19}", re.ASCII)


def position_of(value: object) -> int | None:
    """Return a position; None if it is `now`.

    Raises:
        ValueError: it is neither a position nor `now`.
    """
    if value == NOW:
        return None
    if isinstance(value, str) and _POSITION.fullmatch(value):
        value = int(value)
    if type(value) is not int or not 0 <= value <= _MAX_POSITION:
        raise ValueError(f"must be a position, which is a whole number from 0, or {NOW}")
    return value


Position = Annotated[
    int | None,
    PlainValidator(
        position_of,
        json_schema_input_type=Annotated[str, Field(pattern=f"^({NOW}|{_POSITION.pattern})$")],
    ),
]


class FeedQuery(MemberFilter):
    """The parameters of `/feed`. The filters are those of `/query` that do not name a time."""

    status: Annotated[tuple[Status, ...], Field(max_length=100)] = ()
    """The state of the task after the change. If it is given several times, one of them must
    match."""
    position: Position = None
    """The changes from this position on: 0 for all, the `Feed-Position` of a list for those that
    the list does not contain, or `now`, which is the default."""

    def changes_filter(self) -> dict[str, object]:
        """Return the named parameters of `sql/history/read_feed.sql` that select changes."""
        return {
            "statuses": self.status or None,
            "services": self.service or None,
            "intents": self.intent or None,
            "created_by": self.created_by,
            "project_id": self.project_id,
            "outcome": self.outcome,
        }


class ChangesQuery(FeedQuery):
    """The parameters of `/changes`."""

    limit: Annotated[int, whole_number(1, 1000)] = 100
    """The largest number of changes in a response; 100 by default."""
    wait: Annotated[int, whole_number(0, 25)] = 20
    """If no change matches yet, how many seconds to wait for one; 20 by default."""


def last_event_id(header: str | None) -> int | None:
    """Return the position in a `Last-Event-ID` header; None if there is no header.

    Raises:
        Invalid: it is not the id of an event of the feed.
    """
    if header is None:
        return None
    if not _POSITION.fullmatch(header) or int(header) > _MAX_POSITION:
        detail = "must be the id of an event of the feed, which is a whole number"
        raise Invalid(
            f"Last-Event-ID: {detail}", errors=[{"field": "Last-Event-ID", "detail": detail}]
        )
    return int(header)
