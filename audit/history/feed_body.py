"""The changes of the feed as responses show them."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from audit.history.states import State
from audit.history.task import Output, TaskSummary
from audit.history.values import Timestamp


class FeedChange(Output):
    """A task that was recorded or changed."""

    n: int
    """The number of the change in the log of all tasks: 0, 1, 2 and so on, without gaps."""
    task_id: UUID
    status: State
    """The state of the task after the change."""
    changed_at: Timestamp
    """When the transaction of the change began, by the database's clock. Transactions overlap, so
    `changed_at` may be earlier than the one of the change before."""
    by: str | None
    """The name of the API key, or the subject of the token, that made the change. null if the
    service has no keys, and for programs that write by SQL."""
    changed: dict[str, Any] | None
    """The members that the change replaced, with their new values; any of the members of `GET
    /tasks/{task_id}` that may change. null if the task is new in the log: it was recorded, or it
    was imported because it was recorded before the log began."""
    task: TaskSummary
    """The task in its state at the time of the response, which later changes may have altered."""


class ChangesBody(Output):
    """Consecutive changes, oldest first."""

    changes: list[FeedChange]
    position: int
    """Where to continue. It grows also if no change matches."""
    more: bool
    """Whether the log goes on at `position` already. The next request then need not wait."""
