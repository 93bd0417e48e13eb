"""The events of a task, as responses show them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final
from uuid import UUID

from pydantic import Field, TypeAdapter

from audit.history.states import State
from audit.history.task import Output, Task
from audit.history.values import Timestamp


class MemberChange(Output):
    """The value of a member before and after an event."""

    before: Any = Field(alias="from")
    after: Any = Field(alias="to")


class TaskEvent(Output):
    """One event in the history of a task."""

    position: int | None
    """The position of the event in the log of all tasks; null until it has one, which usually
    takes less than a second."""
    at: Timestamp
    """When the transaction that wrote the event began, by the database's clock."""
    kind: str
    """`recorded`, `changed`, or `imported` for a task that was recorded before the log began. Later
    versions may add kinds."""
    status: State
    """The state of the task after the event."""
    actor: str | None
    """The name of the API key, or the subject of the token, that made the change. null if the
    service has no keys, and for programs that write by SQL."""
    role: str
    """The role that the session of the database belongs to."""
    request_id: str | None
    """The request that made the change, as in its `X-Request-ID`."""
    changed: dict[str, MemberChange]
    """The members that the event changed. Empty for the first event of a task, and for a write that
    changed nothing."""
    salt: UUID | None
    content: str | None
    """The SHA-256 digest, in hexadecimal digits, of the salt, a line feed, and the body of the
    response to `GET /tasks/{task_id}` after the event."""


class HistoryBody(Output):
    """A page of the events of a task, oldest first."""

    task_id: UUID
    events: list[TaskEvent]
    """Empty if the task was recorded before the log began, and has not been changed or imported."""
    next_cursor: str | None
    """null on the last page, and only there."""


_EVENTS: Final[TypeAdapter[list[TaskEvent]]] = TypeAdapter(list[TaskEvent])


@dataclass(frozen=True)
class HistoryPage:
    """A page of the events of a task. `events_json` is a JSON array as PostgreSQL wrote it."""

    task_id: UUID
    events_json: str = field(repr=False)
    next_cursor: str | None
    rows: int
    """The number of events in the page."""

    @cached_property
    def events(self) -> list[TaskEvent]:
        """The events as objects, oldest first. Parsed when first read."""
        return _EVENTS.validate_json(self.events_json)

    @cached_property
    def body(self) -> bytes:
        """The body of the response, in the form of `HistoryBody`."""
        cursor = "null" if self.next_cursor is None else f'"{self.next_cursor}"'
        return (
            f'{{"task_id":"{self.task_id}","events":{self.events_json},"next_cursor":{cursor}}}'
        ).encode()

    @property
    def etag(self) -> str:
        """The entity tag of the body."""
        return f'"{hashlib.sha256(self.body).hexdigest()[:32]}"'


@dataclass(frozen=True)
class TaskVersion:
    """A task as it was after an event. `json` is what `GET /tasks/{task_id}` answered then."""

    event: TaskEvent
    json: str = field(repr=False)

    @cached_property
    def task(self) -> Task:
        """The task as an object. Parsed when first read."""
        return Task.model_validate_json(self.json)

    @property
    def matches_digest(self) -> bool:
        """Whether the digest that was stored with the event is the one of this version."""
        digest = hashlib.sha256(f"{self.event.salt}\n{self.json}".encode()).hexdigest()
        return digest == self.event.content
