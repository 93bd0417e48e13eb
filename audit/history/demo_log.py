"""Records a generated history with the events that an orchestrator would have left."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import asyncpg

from audit.history.parsing import MAX_TASKS_IN_ARRAY, batch_of
from audit.history.service import AuditService
from audit.history.states import State
from audit.postgres import statements
from audit.postgres.pool import fetch_row, fetch_rows

if TYPE_CHECKING:
    from audit.postgres.pool import Connection

Task = dict[str, Any]
#: Older tasks are recorded once, in their last state, because changes take longer to record.
_DETAILED_DAYS: Final = 7
_RECORDER: Final = "deploy-bot"
_ORCHESTRATOR: Final = "orchestrator"
_APPROVERS: Final = ("linus@example.com", "margaret@example.com", "radia@example.com")
#: The members that a task gets after it was recorded as pending, by the step that brings them.
_APPROVED: Final = ("approved_at", "outcome")
_FINISHED: Final = (
    *("completed_at", "outcome", "actual_resources", "external_ai_used"),
    *("error_message", "suggestions"),
)
_LATER: Final = {"status", *_APPROVED, *_FINISHED}
_LOCK_WAIT: Final = "10s"


async def record_history(service: AuditService, history: Sequence[Task], until: datetime) -> int:
    """Record a generated history in one transaction, and return the number of its tasks.

    Each task of the last seven days before `until` is recorded as pending and then changed, by the
    actors that an orchestrator would name. An older task is recorded in its last state. The time of
    an event is the time at which the task says that it got this state. If the connection may not
    set it, it is the current time.
    """
    border = until - timedelta(days=_DETAILED_DAYS)
    times = [datetime.fromisoformat(task["created_at"]) for task in history]
    await service.partitions.make_for(times)
    older = sum(at < border for at in times)
    async with service.database.connection() as connection, connection.transaction():
        has_times = await _begin_event_times(connection)
        for tasks in _portions(history[:older]):
            await _record(connection, tasks, _ORCHESTRATOR)
        for tasks in _portions(history[older:]):
            pending = [
                {name: value for name, value in task.items() if name not in _LATER}
                for task in tasks
            ]
            authors = [(_RECORDER, _request_id(task, State.PENDING)) for task in pending]
            await _record(connection, pending, _RECORDER, authors)
            for changes in _steps(tasks):
                await _change(connection, changes)
        if has_times:
            await connection.execute(statements.END_EVENT_TIMES)
    return len(history)


async def _begin_event_times(connection: Connection) -> bool:
    try:
        async with connection.transaction():
            await connection.execute(statements.BEGIN_EVENT_TIMES)
    except asyncpg.InsufficientPrivilegeError:
        return False
    return True


async def _record(
    connection: Connection,
    tasks: Sequence[Task],
    actor: str,
    authors: Sequence[tuple[str, str]] | None = None,
) -> None:
    """Record tasks that one request sent, or, with `authors`, one request each."""
    await fetch_row(
        connection,
        statements.RECORD_TASKS,
        tasks=batch_of(tasks).text,
        actor=actor,
        request_id=_request_id(tasks[0], "import"),
        authors=json.dumps(authors) if authors else None,
        lock_wait=_LOCK_WAIT,
    )


async def _change(connection: Connection, changes: Sequence[dict[str, Any]]) -> None:
    await fetch_rows(
        connection,
        statements.UPDATE_TASKS,
        changes=json.dumps(changes),
        task_ids=[change["task_id"] for change in changes],
        lock_wait=_LOCK_WAIT,
    )


def _steps(tasks: Sequence[Task]) -> Iterator[list[dict[str, Any]]]:
    """Yield the changes that bring pending tasks to their last states, each task once in a step."""
    approved = [task for task in tasks if "approved_at" in task]
    started = [task for task in approved if task["status"] != State.APPROVED]
    finished = [task for task in started if task["status"] != State.EXECUTING]
    rejected = [task for task in tasks if task["status"] == State.REJECTED]
    yield [_step(task, State.APPROVED, _APPROVED, _approver(task)) for task in approved]
    yield [_step(task, State.REJECTED, _FINISHED, _approver(task)) for task in rejected]
    yield [_step(task, State.EXECUTING, (), _ORCHESTRATOR) for task in started]
    yield [_step(task, State(task["status"]), _FINISHED, _ORCHESTRATOR) for task in finished]


def _step(task: Task, state: State, members: Iterable[str], actor: str) -> dict[str, Any]:
    """Return a change as `update_tasks` takes it."""
    return {
        "task_id": task["task_id"],
        "change": {"status": state, **{name: task[name] for name in members if name in task}},
        "actor": actor,
        "request_id": _request_id(task, state),
    }


def _approver(task: Task) -> str:
    return _APPROVERS[_digest(task, "approver")[0] % len(_APPROVERS)]


def _request_id(task: Task, step: str) -> str:
    return _digest(task, step)[:16].hex()


def _digest(task: Task, purpose: str) -> bytes:
    return hashlib.sha256(f"{task['task_id']} {purpose}".encode()).digest()


def _portions(tasks: Sequence[Task]) -> Iterator[Sequence[Task]]:
    for start in range(0, len(tasks), MAX_TASKS_IN_ARRAY):
        yield tasks[start : start + MAX_TASKS_IN_ARRAY]
