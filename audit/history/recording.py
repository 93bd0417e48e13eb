"""Records tasks and changes them. Knows no HTTP."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any
from uuid import UUID

import asyncpg

from audit.errors import (
    Conflict,
    PreconditionFailed,
    Problem,
    TaskNotFound,
    TimedOut,
    Unavailable,
)
from audit.history.parsing import TaskBatch
from audit.history.partitions import Partitions
from audit.history.query import task_id_of
from audit.history.task import TaskDocument
from audit.history.validation import ErrorList
from audit.postgres import statements
from audit.postgres.database import Database
from audit.postgres.failures import StaleSchema
from audit.postgres.pool import fetch_row
from audit.settings import Settings
from audit.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from audit.postgres.pool import Connection

_ATTEMPTS = 5
_LISTED_CONFLICTS = 10
_FORBIDDEN_CHANGE = {
    "TA001": "the task is in a terminal state and can no longer change",
    "TA002": "a task moves forwards only: pending, approved, executing, then a terminal state",
    "TA003": "a member that may not change is among them",
}


@dataclass(frozen=True)
class Recorded:
    """The result of recording: how many tasks were new, and the ids of all in the order sent."""

    recorded: int
    duplicates: int
    ids_as_text: Sequence[str] = field(repr=False)

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


@dataclass(frozen=True, slots=True)
class Author:
    """Who records or changes tasks, and in which request; the event log stores both."""

    actor: str | None = None
    """The name of an API key, the subject of a token, or what a program says; None: not known."""
    request_id: str | None = None


UNKNOWN_AUTHOR = Author()


class Recording:
    """Writes validated tasks and changes to the database."""

    def __init__(
        self, database: Database, settings: Settings, metrics: Metrics, partitions: Partitions
    ) -> None:
        self._database = database
        self._settings = settings
        self._metrics = metrics
        self._partitions = partitions

    async def record_batches(
        self, batches: Sequence[TaskBatch], author: Author = UNKNOWN_AUTHOR
    ) -> Recorded:
        """Record validated batches in one transaction: all of the tasks, or none.

        Those recorded before with the same content count as duplicates and stay as they are.

        Raises:
            Conflict: an id is recorded with other content.
        """
        async with self._database.queues.writing.slot(
            retry_key=hash(tuple(batch.text for batch in batches))
        ):
            deadline = self._deadline()
            for attempt in range(_ATTEMPTS):
                try:
                    return await self._record_once(batches, author, deadline)
                except StaleSchema:
                    if attempt:
                        raise
                except asyncpg.CheckViolationError as refused:
                    # Only the error of a missing partition does not name a constraint.
                    if refused.constraint_name is not None:
                        raise
                    await self._partitions.make_for(
                        [created_at for batch in batches for created_at in batch.times]
                    )
                    deadline = self._deadline()
                except (asyncpg.DeadlockDetectedError, asyncpg.UniqueViolationError):
                    # Another transaction records the same ids, in another order or by plain SQL.
                    continue
        raise Unavailable("others record the same tasks at this moment", retry_after_seconds=1)

    async def _record_once(
        self, batches: Sequence[TaskBatch], author: Author, deadline: float
    ) -> Recorded:
        recorded = 0
        task_ids: list[str] = []
        is_committing = False
        try:
            async with self._database.connection() as connection, connection.transaction():
                for batch in batches:
                    await self._limit_next(connection, deadline)
                    row = await fetch_row(
                        connection,
                        statements.RECORD_TASKS,
                        tasks=batch.text,
                        actor=author.actor,
                        request_id=author.request_id,
                    )
                    if row["too_late"]:
                        raise self._too_late(json.loads(row["too_late"]), batch)
                    if row["known_ids"]:
                        await _refuse_conflicts(connection, row)
                    recorded += row["recorded"]
                    task_ids += json.loads(row["task_ids"] or "[]")
                is_committing = True
        except (TimedOut, Unavailable) as failure:
            problem = self._meaning(failure, is_sent=is_committing)
            raise problem from failure.__cause__
        duplicates = len(task_ids) - recorded
        self._metrics.recorded(recorded, duplicates)
        return Recorded(recorded, duplicates, task_ids)

    def _too_late(self, positions: Sequence[int], batch: TaskBatch) -> Problem:
        errors = ErrorList(self._settings)
        for position in positions:
            errors.add(
                f"{batch.labels[position]}created_at",
                "must not be more than 24 hours ahead of the database's clock",
            )
        return errors.problem()

    async def update(
        self,
        task_id: UUID | str,
        change: str,
        *,
        project_id: UUID | None = None,
        match: Sequence[str] | None = None,
        none_match: Sequence[str] | None = None,
        author: Author = UNKNOWN_AUTHOR,
    ) -> TaskDocument:
        """Apply a validated change to an open task; return the whole task.

        The task must have one of the entity tags of `match` and none of `none_match`; "*" stands
        for any tag. With a `project_id`, a task of another project is not found. A change that
        leaves the task as it is writes nothing, so it can be sent again.

        Raises:
            TaskNotFound: no task has this id.
            PreconditionFailed: the entity tag of the task does not fit.
            Conflict: the task is terminal, or the change goes backwards or is not allowed.
        """
        task_id = task_id_of(task_id)
        values = {
            "task_id": task_id,
            "change": change,
            "project_id": project_id,
            "match": match,
            "none_match": none_match,
            "actor": author.actor,
            "request_id": author.request_id,
        }
        async with self._database.queues.writing.slot(retry_key=(task_id, change)):
            for _ in range(_ATTEMPTS):
                row = await self._update_once(task_id, values)
                if row is None:
                    raise TaskNotFound(f"no task has the id {task_id}")
                if not row["is_matched"]:
                    raise PreconditionFailed(
                        f"{task_id}: its ETag is {row['etag']}; read the task, and send the change"
                        " that it still needs"
                    )
                if row["is_done"]:
                    return TaskDocument(row["document"], row["etag"])
        raise Unavailable("others change the same task at this moment", retry_after_seconds=1)

    async def _update_once(
        self, task_id: UUID, values: Mapping[str, object]
    ) -> asyncpg.Record | None:
        """Run the statement that changes a task, within the time limit of a write."""
        is_sent = False
        try:
            async with self._database.connection() as connection, AsyncExitStack() as stack:
                if self._settings.write_timeout_seconds < self._settings.statement_timeout_seconds:
                    await stack.enter_async_context(connection.transaction())
                    await self._limit_next(connection, self._deadline())
                is_sent = True
                return await connection.fetchrow(
                    statements.UPDATE_TASK, *statements.UPDATE_TASK.values(values)
                )
        except (TimedOut, Unavailable) as failure:
            problem = self._meaning(failure, is_sent=is_sent)
            raise problem from failure.__cause__
        except asyncpg.PostgresError as refused:
            if refused.sqlstate not in _FORBIDDEN_CHANGE:
                raise
            raise Conflict(f"{task_id}: {_FORBIDDEN_CHANGE[refused.sqlstate]}") from refused

    def is_queued(self, task: asyncio.Task[Any]) -> bool:
        """Return whether a task that records or updates still waits for its turn to begin."""
        return self._database.queues.writing.holds_back(task)

    def _deadline(self) -> float:
        return time.monotonic() + self._settings.write_timeout_seconds

    async def _limit_next(self, connection: Connection, deadline: float) -> None:
        """Let PostgreSQL cancel the next statement of a transaction at the deadline."""
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimedOut("")
        if left < self._settings.statement_timeout_seconds:
            await connection.execute(f"SET LOCAL statement_timeout = {math.ceil(left * 1000)}")

    def _meaning(self, failure: Problem, *, is_sent: bool) -> Problem:
        """Return what a failure of the database means to a client that sent a change.

        `is_sent` is whether the statement that commits was sent.
        """
        if is_sent and not _is_undone(failure.__cause__):
            return Unavailable(
                "the database did not confirm the change, which may be made or not;"
                " send the request again, with the same task_id",
                retry_after_seconds=1,
            )
        if isinstance(failure, TimedOut):
            seconds = min(
                self._settings.write_timeout_seconds, self._settings.statement_timeout_seconds
            )
            return TimedOut(
                f"the database did not finish within {seconds:g} seconds"
                " (write_timeout_seconds, statement_timeout_seconds) and undid the change;"
                " nothing is recorded"
            )
        failure.detail += "; nothing is recorded"
        return failure


async def _refuse_conflicts(connection: Connection, row: asyncpg.Record) -> None:
    conflicts = await connection.fetchval(
        statements.FIND_CONFLICTS, row["known_ids"], row["known_digests"]
    )
    if conflicts:
        listed = ", ".join(conflicts[:_LISTED_CONFLICTS])
        unlisted = len(conflicts) - _LISTED_CONFLICTS
        more = f" and {unlisted} more" if unlisted > 0 else ""
        raise Conflict(f"recorded with other content: {listed}{more}")


def _is_undone(failure: BaseException | None) -> bool:
    """Return whether PostgreSQL answered with an error, so that the statement had no effect."""
    if isinstance(failure, asyncpg.QueryCanceledError):
        return True
    is_end = isinstance(
        failure, asyncpg.PostgresConnectionError | asyncpg.OperatorInterventionError
    )
    return isinstance(failure, asyncpg.PostgresError) and not is_end
