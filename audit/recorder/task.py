"""A task that is being recorded, and its states."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from audit.errors import Conflict
from audit.history.states import State


class Sink(Protocol):
    """Takes what happens to tasks."""

    def begin(self, members: dict[str, Any], *, implicit: bool) -> bool:
        """Record a new task; return whether it is recorded. If `implicit`, raise nothing."""

    def change(self, task_id: str, members: dict[str, Any], *, implicit: bool) -> None:
        """Record a change to a task that is recorded. If `implicit`, raise nothing."""

    def text(self, error: BaseException | str) -> str:
        """Return the text of an error as it is recorded."""


class RecordedTask:
    """A task that is being recorded. Its methods return when the record is on this disk."""

    def __init__(
        self,
        sink: Sink,
        task_id: str,
        outcome: Mapping[str, Any] | None = None,
        services: Iterable[str] = (),
        status: State | None = None,
    ) -> None:
        """Follow a task that is recorded already. `status` is its state, None if not known."""
        self._sink = sink
        self.task_id = task_id
        self.outcome: dict[str, Any] = dict(outcome or {})
        """What came of it. Change it at will: it is recorded with the next state."""
        self._services = dict.fromkeys(services)
        self._status = status
        self._process = os.getpid()
        self._began = (datetime.now(UTC), time.monotonic()) if status else None
        #: The new task, if it could not be recorded. It is recorded with its next state.
        self._unrecorded: dict[str, Any] | None = None

    @classmethod
    def begin(cls, sink: Sink, members: dict[str, Any]) -> RecordedTask:
        """Record a new task. `members` has its id and its status."""
        task = cls(
            sink,
            members["task_id"],
            members.get("outcome"),
            members.get("services_touched") or (),
            State(members["status"]),
        )
        members = {**members, "created_at": members.get("created_at") or task._now()}
        if not sink.begin(members, implicit=False):
            task._unrecorded = members
        return task

    def __repr__(self) -> str:
        status = None if self._status is None else self._status.value
        return f"RecordedTask(task_id={self.task_id!r}, status={status!r})"

    @property
    def status(self) -> State | None:
        """The state that was recorded last; None if it is not known."""
        return self._status

    @property
    def services_touched(self) -> list[str]:
        """The names of the services that the task touches."""
        return list(self._services)

    @property
    def has_ended(self) -> bool:
        """Whether the task is completed, failed or rejected."""
        return self._status is not None and self._status.is_terminal

    def touch(self, *services: str) -> None:
        """Add services that the task touches. They are recorded with the next state."""
        self._services |= dict.fromkeys(services)

    def approve(self, by: str | None = None) -> None:
        """Record that the task is approved. `by` becomes `outcome.approved_by`."""
        if by is not None:
            self.outcome["approved_by"] = by
        self._move(State.APPROVED, {"approved_at": self._now()})

    def execute(self) -> None:
        """Record that this process executes the task."""
        self._move(State.EXECUTING, {})

    def complete(self, outcome: Mapping[str, Any] | None = None) -> None:
        """Record that the task is completed. `outcome` is added to what is in `self.outcome`."""
        self.outcome |= outcome or {}
        self._end(State.COMPLETED)

    def fail(self, error: BaseException | str) -> None:
        """Record that the task has failed, and why."""
        self._end(State.FAILED, error)

    def reject(self, reason: str | None = None) -> None:
        """Record that the task is rejected, and why."""
        self._end(State.REJECTED, reason)

    def leave(self, error: BaseException | None) -> None:
        """Record the end of the code that the task stands for, unless the task has ended.

        This raises nothing: what the code did is not undone by a record that cannot be made. If the
        code forked, a child that leaves it records nothing, because its parent goes on.
        """
        if self.has_ended or os.getpid() != self._process:
            return
        is_exit = isinstance(error, SystemExit) and (error.code is None or error.code == 0)
        if error is None or is_exit:
            self._end(State.COMPLETED, implicit=True)
        else:
            self._end(State.FAILED, error, implicit=True)

    def _end(
        self, status: State, error: BaseException | str | None = None, *, implicit: bool = False
    ) -> None:
        members: dict[str, Any] = {"completed_at": self._now()}
        if error is not None:
            members["error_message"] = self._sink.text(error)
        self._move(status, members, implicit=implicit)

    def _move(self, status: State, members: dict[str, Any], *, implicit: bool = False) -> None:
        if self.has_ended:
            raise Conflict(f"the task is {self._status} already")
        if self._status is not None and status.is_before(self._status):
            raise Conflict(f"the task is {self._status}, so it cannot become {status}")
        members = {"status": status.value, **members}
        if self.outcome:
            members["outcome"] = self.outcome
        if self._services:
            members["services_touched"] = list(self._services)
        if self._unrecorded is None:
            self._sink.change(self.task_id, members, implicit=implicit)
        else:
            self._unrecorded |= members
            if self._sink.begin(self._unrecorded, implicit=implicit):
                self._unrecorded = None
        self._status = status

    def _now(self) -> datetime:
        """Return the time. After the start of the task, the wall clock may be set to any time."""
        if self._began is None:
            return datetime.now(UTC)
        began, at = self._began
        return began + timedelta(seconds=time.monotonic() - at)
