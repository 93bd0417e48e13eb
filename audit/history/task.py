"""Tasks as requests record and change them, and as responses show them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, Final
from uuid import UUID

from pydantic import BaseModel, ConfigDict, StringConstraints, TypeAdapter

from audit.history.states import State
from audit.history.validation import Input
from audit.history.values import (
    CreatedAt,
    JsonObject,
    Name,
    Outcome,
    RequestText,
    Services,
    Status,
    TaskId,
    Timestamp,
)


class _TaskFields(Input):
    """The members that may change until a task is in a terminal state."""

    approved_at: Timestamp | None = None
    """Set by the server at the transition if it is not given. Decimals after the sixth are cut."""
    completed_at: Timestamp | None = None
    """Set by the server at the transition to a terminal state if it is not given. Decimals after
    the sixth are cut."""
    services_touched: Services | None = None
    """Names of services, without duplicates; the order is kept."""
    outcome: Outcome | None = None
    """Its member `action_type` is the intent of the task: text of at most 255 characters."""
    estimated_resources: JsonObject | None = None
    actual_resources: JsonObject | None = None
    external_ai_used: JsonObject | None = None
    error_message: Annotated[str, StringConstraints(strict=True)] | None = None
    suggestions: list[Any] | None = None


class TaskChange(_TaskFields):
    """A change to a task that is not in a terminal state yet. null clears a member."""

    status: Status = State.PENDING
    """Moves forwards only: pending, approved, executing, then one of the terminal states."""


class NewTask(_TaskFields):
    """A task to record. null means that a member is not given."""

    status: Status | None = None
    """A new task is `pending` if no status is given."""
    task_id: TaskId | None = None
    """The idempotency key. The server makes one if it is not given."""
    project_id: TaskId | None = None
    request_text: RequestText
    created_by: Name | None = None
    created_at: CreatedAt | None = None
    """From 2000-01-01 to 24 hours ahead of the database's clock, which is the default. Decimals
    after the sixth are cut."""


class Output(BaseModel):
    """Part of a response. Later versions may add members, which clients must ignore."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)


class TaskSummary(Output):
    """A task as lists show it."""

    task_id: UUID
    status: State
    request_text: str
    services_touched: list[str]
    outcome: JsonObject | None
    created_at: Timestamp
    completed_at: Timestamp | None
    error_message: str | None


class Task(TaskSummary):
    """A task with all its members."""

    project_id: UUID | None
    created_by: str | None
    recorded_at: Timestamp
    """The time of the database's clock when the task was recorded."""
    approved_at: Timestamp | None
    estimated_resources: JsonObject | None
    actual_resources: JsonObject | None
    external_ai_used: JsonObject | None
    suggestions: list[Any] | None


class TaskPageBody(Output):
    """A page of a list, newest first: by `created_at`, then by `task_id`, both descending."""

    tasks: list[TaskSummary]
    total: int | None
    """The number of tasks that match all the filters, in the same snapshot as the page. null with
    `total=none`."""
    limit: int
    offset: int | None
    """null in the response to a cursor."""
    next_cursor: str | None
    """null on the last page, and only there."""


class RecordedBody(Output):
    """The result of recording tasks."""

    recorded: int
    """The number of tasks that were new."""
    duplicates: int
    """The number of tasks that were already recorded with the same content."""
    task_ids: list[UUID]
    """In the order sent."""


@dataclass(frozen=True)
class Recorded:
    """The result of recording: how many tasks were new, and the ids of all in the order sent."""

    recorded: int
    duplicates: int
    ids_as_text: Sequence[str] = field(repr=False)
    position: str | None = field(default=None, repr=False, compare=False)
    """The position that contains all of them; see `audit.history.positions`."""

    @cached_property
    def task_ids(self) -> list[UUID]:
        """The ids of all tasks, in the order sent. Parsed when first read."""
        return [UUID(task_id) for task_id in self.ids_as_text]

    def to_json(self) -> bytes:
        """Return the body of the response, shaped like `RecordedBody`."""
        body = {
            "recorded": self.recorded,
            "duplicates": self.duplicates,
            "task_ids": self.ids_as_text,
        }
        return json.dumps(body).encode()


_SUMMARIES: Final[TypeAdapter[list[TaskSummary]]] = TypeAdapter(list[TaskSummary])


@dataclass(frozen=True)
class TaskPage:
    """One page of a list. `tasks_json` is a JSON array as PostgreSQL wrote it."""

    tasks_json: str = field(repr=False)
    total: int | None
    """None with `total="none"`."""
    limit: int
    offset: int | None
    next_cursor: str | None
    rows: int
    """The number of tasks in the page."""
    snapshot: str | None = field(default=None, repr=False, compare=False)
    """The snapshot of the database that it was read in; None if it was made otherwise."""

    @property
    def valid_until(self) -> None:
        """A page is out of date only when a task changes, or leaves its window."""

    @property
    def size(self) -> int:
        """The approximate memory of the page in bytes."""
        return len(self.tasks_json)

    @cached_property
    def tasks(self) -> list[TaskSummary]:
        """The tasks as objects: newest first, at most `limit`. Parsed when first read."""
        return _SUMMARIES.validate_json(self.tasks_json)

    def to_json(self) -> bytes:
        """Return the body of the response, in the form of `TaskPageBody`."""
        offset = "null" if self.offset is None else self.offset
        total = "null" if self.total is None else self.total
        cursor = "null" if self.next_cursor is None else f'"{self.next_cursor}"'
        return (
            f'{{"tasks":{self.tasks_json},"total":{total},"limit":{self.limit},'
            f'"offset":{offset},"next_cursor":{cursor}}}'
        ).encode()


@dataclass(frozen=True)
class TaskDocument:
    """One task with all its members. `json` is a JSON object as PostgreSQL wrote it."""

    json: str = field(repr=False)
    etag: str
    """The entity tag (RFC 9110, 8.8.3) of this state of the task. Another state has another tag."""
    position: str | None = field(default=None, repr=False, compare=False)
    """Set by a change: the position that contains it; see `audit.history.positions`."""

    @cached_property
    def task(self) -> Task:
        """The task as an object. Parsed when first read."""
        return Task.model_validate_json(self.json)

    def __repr__(self) -> str:
        return f"TaskDocument(task_id={str(self.task.task_id)!r}, status={str(self.task.status)!r})"
