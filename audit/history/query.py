"""The parameters of the routes that read: which tasks match, and which page of a list to show."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import datetime, timedelta
from functools import cached_property
from typing import Annotated, Any, Final, Literal, Self, TypeVar
from uuid import UUID

from pydantic import (
    BeforeValidator,
    Field,
    PrivateAttr,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from audit.history.cursor import Cursor, decode, decode_event
from audit.history.states import State
from audit.history.validation import Input, invalid_parameters
from audit.history.values import (
    Name,
    OutcomeFilter,
    Status,
    TaskId,
    Timestamp,
    time_span,
    whole_number,
)

MAX_OFFSET: Final = 2**63 - 1
DEFAULT_FAILURE_DAYS: Final = 7
#: The parameters that may be given several times.
_SEVERAL: Final = frozenset({"status", "service", "intent", "facet"})
_MICROSECOND: Final = timedelta(microseconds=1)

CursorText = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class NoParams(Input):
    """The parameters of a route that takes none."""

    @field_validator("*", mode="before")
    @classmethod
    def _once(cls, value: object, info: ValidationInfo) -> object:
        if info.field_name in _SEVERAL:
            if not isinstance(value, str | tuple | list):
                raise ValueError("must be text, or several texts")
            if not value:
                raise ValueError("must not be empty")
            return (value,) if isinstance(value, str) else value
        if isinstance(value, list):
            if len(value) > 1:
                raise ValueError(f"is given {len(value)} times, may be given once")
            return value[0]
        return value


def _total(value: object) -> object:
    if value not in ("exact", "none"):
        raise ValueError("must be exact or none")
    return value


class TaskPath(NoParams):
    """The parameters of a route to one task."""

    task_id: TaskId


class HistoryQuery(TaskPath):
    """The parameters of the route to the events of a task."""

    limit: Annotated[int, whole_number(1, 1000)] = 100
    """The largest number of events in a page; 100 by default."""
    cursor: CursorText | None = None
    """The `next_cursor` of a page of the same task. The response continues after that page."""
    _after: int = PrivateAttr(default=-1)

    @model_validator(mode="after")
    def _decode_cursor(self) -> Self:
        if self.cursor is not None:
            self._after = decode_event(self.cursor, self.task_id)
        return self

    @property
    def after(self) -> int:
        """The event after which the page begins; -1: at the first event."""
        return self._after


class MemberFilter(NoParams):
    """The parameters that say what members a task must have. Filters combine with AND."""

    service: Annotated[tuple[Name, ...], Field(max_length=100)] = ()
    """Matches an element of `services_touched` exactly. If it is given several times, all of them
    must match."""
    intent: Annotated[tuple[Name, ...], Field(max_length=100)] = ()
    """Matches `outcome.action_type` exactly. If it is given several times, one of them must
    match."""
    created_by: Name | None = None
    """Matches exactly."""
    project_id: TaskId | None = None
    """Matches exactly."""
    outcome: OutcomeFilter = None
    """A JSON object that `outcome` must contain."""


class TaskFilter(MemberFilter):
    """The parameters that say which tasks match, also by the time of their creation."""

    days: Annotated[int, whole_number(1, 365)] | None = None
    """Tasks created in the last `days` times 24 hours. Not together with `since` or `until`."""
    last: Annotated[timedelta, time_span(365)] | None = None
    """Tasks created in the last `15m`, `24h`, `7d` or `8w`, for example; at most `365d`.
    Not together with `days`, `since` or `until`."""
    since: Timestamp | None = None
    """Tasks created at or after this RFC 3339 time."""
    until: Timestamp | None = None
    """Tasks created before this RFC 3339 time."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.days is not None and (self.since or self.until):
            raise ValueError("days: not together with since or until")
        if self.last is not None and (self.days is not None or self.since or self.until):
            raise ValueError("last: not together with days, since or until")
        if self.since and self.until and self.since > self.until:
            raise ValueError("until: must not be before since")
        return self

    @property
    def statuses(self) -> tuple[State, ...]:
        """The states to match; empty means any state."""
        return ()

    @property
    def span(self) -> timedelta | None:
        """How far the window reaches back from now; None if it does not move with the clock."""
        return self.last if self.days is None else timedelta(days=self.days)

    def window_start(self, clock: datetime | None) -> datetime | None:
        """Return the time of the first task to match, if `days` count back from `clock`."""
        return clock - self.span + _MICROSECOND if clock and self.span else self.since

    @property
    def moves_with_clock(self) -> bool:
        """Whether the same query may have another answer a second later, with the same tasks."""
        return self.span is not None

    @property
    def watched(self) -> TaskFilter:
        """Matches every task that the answer depends on."""
        return self

    @property
    def is_counted(self) -> bool:
        """Whether the counts by service, time, state and intent support all the filters."""
        others = (self.created_by, self.project_id, self.outcome)
        return others == (None, None, None) and len(set(self.service)) <= 1

    @cached_property
    def fingerprint(self) -> bytes:
        """A digest of the filters in any order. A cursor is valid only with the same filters."""
        filters = (
            sorted(set(self.statuses)),
            sorted(set(self.service)),
            sorted(set(self.intent)),
            self.span,
            self.since,
            self.until,
            self.created_by,
            self.project_id,
            self.outcome,
        )
        return hashlib.blake2b(repr(filters).encode("utf-8", "surrogatepass")).digest()

    def filter_values(self, since: datetime | None) -> dict[str, object]:
        """Return the named parameters of `sql/history/filter.sql`, with the `window_start`."""
        return {
            "statuses": self.statuses or None,
            "services": self.service or None,
            "intents": self.intent or None,
            "since": since,
            "until": self.until,
            "created_by": self.created_by,
            "project_id": self.project_id,
            "outcome": self.outcome,
        }


class TaskQuery(TaskFilter):
    """The parameters that all lists share."""

    limit: Annotated[int, whole_number(1, 1000)] = 100
    """The largest number of tasks in a page; 100 by default."""
    offset: Annotated[int, whole_number(0, MAX_OFFSET)] | None = None
    """The number of matching tasks to skip; 0 by default. Not together with `cursor`."""
    total: Annotated[Literal["exact", "none"], BeforeValidator(_total)] = "exact"
    """`none` leaves `total` null and saves the time for counting; `exact` by default."""
    cursor: CursorText | None = None
    """The `next_cursor` of a page. The response continues after that page; the filters must be the
    same."""

    @model_validator(mode="after")
    def _decode_cursor(self) -> Self:
        if self.cursor is not None and self.offset is not None:
            raise ValueError("offset: not together with cursor")
        self.position  # noqa: B018 - the first use decodes it
        return self

    @cached_property
    def position(self) -> Cursor | None:
        """The decoded cursor: the page begins after this task. None if there is no cursor.

        Raises:
            Invalid: this service did not make the cursor, or made it for other filters.
        """
        if self.cursor is None:
            return None
        return decode(self.cursor, self.fingerprint, has_clock=self.span is not None)

    @property
    def moves_with_clock(self) -> bool:
        """Whether the window moves. That of a cursor does not."""
        return super().moves_with_clock and self.position is None


class FailuresQuery(TaskQuery):
    """The parameters of `/failures`."""

    days: Annotated[int, whole_number(1, 90)] | None = None
    """Tasks created in the last `days` times 24 hours; 7 by default if no other time limit is
    given."""
    last: Annotated[timedelta, time_span(90)] | None = None
    """Tasks created in the last `15m`, `24h`, `7d` or `8w`, for example; at most `90d`.
    Not together with `days`, `since` or `until`."""

    @model_validator(mode="before")
    @classmethod
    def _default_days(cls, given: dict[str, Any]) -> dict[str, Any]:
        if given.get("days") is None and not any(map(given.get, ("last", "since", "until"))):
            return {**given, "days": DEFAULT_FAILURE_DAYS}
        return given

    @property
    def statuses(self) -> tuple[State, ...]:
        """The state `failed`."""
        return (State.FAILED,)


class AnyStatus(TaskFilter):
    """A filter that may name states."""

    status: Annotated[tuple[Status, ...], Field(max_length=100)] = ()
    """The state of the task. If it is given several times, one of them must match."""

    @property
    def statuses(self) -> tuple[State, ...]:
        """The states to match; empty means any state."""
        return self.status


class AuditQuery(AnyStatus, TaskQuery):
    """The parameters of `/query` and `/by-service`."""


Params = TypeVar("Params", bound=NoParams)


def parse_query(model: type[Params], params: Mapping[str, object]) -> Params:
    """Validate the parameters of a URL, each a list of values.

    Raises:
        Malformed: `outcome` is not JSON.
        Invalid: it names every wrong parameter, and lists the known ones if one is unknown.
    """
    try:
        return model.model_validate(dict(params))
    except ValidationError as error:
        raise invalid_parameters(error, model) from None


def parse_arguments(model: type[Params], arguments: Mapping[str, object]) -> Params:
    """Validate arguments of a Python program; like `parse_query`."""
    params = {name: _as_parameter(name, value) for name, value in arguments.items()}
    return parse_query(model, params)


def _as_parameter(name: str, value: object) -> object:
    """Return an argument in the form of a URL parameter, which is a list of values."""
    if name in _SEVERAL and not isinstance(value, str):
        return tuple(value) if isinstance(value, set | frozenset) else value
    return [value]


def task_id_of(value: UUID | str) -> UUID:
    """Return the id of a task.

    Raises:
        Invalid: it is not a UUID or its text.
    """
    return parse_arguments(TaskPath, {"task_id": value}).task_id
