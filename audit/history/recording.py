"""Records tasks and changes them. Knows no HTTP."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, astuple, dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

import asyncpg

from audit.errors import (
    Conflict,
    PreconditionFailed,
    Problem,
    ReadOnly,
    TaskNotFound,
    TimedOut,
    Unavailable,
)
from audit.history.grouping import Groups
from audit.history.parsing import TaskBatch
from audit.history.partitions import Partitions
from audit.history.positions import position_in
from audit.history.query import task_id_of
from audit.history.task import Recorded, TaskDocument
from audit.history.validation import ErrorList
from audit.postgres import statements
from audit.postgres.database import Database
from audit.postgres.failures import StaleSchema
from audit.postgres.pool import fetch_row, fetch_rows
from audit.settings import Settings
from audit.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from audit.postgres.pool import Connection

_ATTEMPTS = 5
_LISTED_CONFLICTS = 10
#: The JSON text of a task or change that shares a statement with those of other requests.
_SMALL_CHARACTERS = 16 * 1024
#: How long a statement for several requests waits for another transaction. It is longer than most
#: commits take. The requests are then served one by one, so only one of them has to wait.
_LOCK_WAIT = "50ms"
_FORBIDDEN_CHANGE = {
    "TA001": "the task is in a terminal state and can no longer change",
    "TA002": "a task moves forwards only: pending, approved, executing, then a terminal state",
    "TA003": "a member that may not change is among them",
}


@dataclass(frozen=True, slots=True)
class Author:
    """Who records or changes tasks, and in which request; the event log stores both."""

    actor: str | None = None
    """The name of an API key, the subject of a token, or what a program says; None: not known."""
    request_id: str | None = None


UNKNOWN_AUTHOR = Author()


@dataclass(frozen=True)
class _Change:
    """A change to a task that a request asks for, and its conditions."""

    task_id: UUID
    change: str
    project_id: UUID | None
    match: Sequence[str] | None
    none_match: Sequence[str] | None
    author: Author

    def to_json(self) -> str:
        """Return it as the statement for several changes takes it."""
        members = {
            "task_id": str(self.task_id),
            "project_id": None if self.project_id is None else str(self.project_id),
            "match": self.match,
            "none_match": self.none_match,
            **asdict(self.author),
        }
        return f'{json.dumps(members)[:-1]}, "change": {self.change}}}'


class Recording:
    """Writes validated tasks and changes to the database."""

    def __init__(
        self, database: Database, settings: Settings, metrics: Metrics, partitions: Partitions
    ) -> None:
        self._database = database
        self._settings = settings
        self._metrics = metrics
        self._partitions = partitions
        queues = database.queues
        self._small_records = Groups(queues.recording_groups, self._record_group)
        self._changes = Groups(queues.changing_groups, self._change_group)

    async def record_batches(
        self, batches: Sequence[TaskBatch], author: Author = UNKNOWN_AUTHOR
    ) -> Recorded:
        """Record validated batches in one transaction: all of the tasks, or none.

        Those recorded before with the same content count as duplicates and stay as they are.

        Raises:
            Conflict: an id is recorded with other content.
        """
        retry_key = hash(tuple(batch.text for batch in batches))
        is_small = _is_small(batches)
        if is_small:
            recorded = await self._small_records.result((batches[0], author), retry_key=retry_key)
            if recorded is not None:
                return recorded
        async with self._database.queues.writing.slot(again=is_small, retry_key=retry_key):
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
        position: str | None = None
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
                        authors=None,
                        lock_wait=None,
                    )
                    if row["too_late"]:
                        raise self._too_late(json.loads(row["too_late"]), batch)
                    if row["known_ids"]:
                        await _refuse_conflicts(connection, row)
                    recorded += row["recorded"]
                    task_ids += json.loads(row["task_ids"] or "[]")
                    position = position_in(row, connection)
                is_committing = True
        except (TimedOut, Unavailable) as failure:
            problem = self._meaning(failure, is_sent=is_committing)
            raise problem from failure.__cause__
        duplicates = len(task_ids) - recorded
        self._metrics.recorded(recorded, duplicates)
        return Recorded(recorded, duplicates, task_ids, position)

    async def _record_group(
        self, group: Sequence[tuple[TaskBatch, Author]]
    ) -> list[Recorded | None]:
        """Record the tasks of requests of one task each, in a statement that commits.

        A task that is not new, or too late, is left to its request.
        """
        (_, first), *others = group
        async with self._statement() as connection:
            row = await fetch_row(
                connection,
                statements.RECORD_TASKS,
                tasks=f"[{','.join(batch.text[1:-1] for batch, _ in group)}]",
                actor=first.actor,
                request_id=first.request_id,
                authors=json.dumps([astuple(author) for _, author in group]) if others else None,
                lock_wait=_LOCK_WAIT,
            )
            position = position_in(row, connection)
        self._metrics.recorded(row["recorded"], 0)
        return [
            Recorded(1, 0, [task_id], position) if is_new else None
            for task_id, is_new in zip(json.loads(row["task_ids"]), row["are_new"], strict=True)
        ]

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
        asked = _Change(task_id, change, project_id, match, none_match, author)
        retry_key = (task_id, change)
        is_small = len(change) <= _SMALL_CHARACTERS
        if is_small:
            document = await self._changes.result(asked, retry_key=retry_key)
            if document is not None:
                return document
        async with self._database.queues.writing.slot(again=is_small, retry_key=retry_key):
            for _ in range(_ATTEMPTS):
                outcome = await self._change(asked)
                if outcome is None:
                    raise TaskNotFound(f"no task has the id {task_id}")
                document, is_done, is_matched = outcome
                if not is_matched:
                    raise PreconditionFailed(
                        f"{task_id}: its ETag is {document.etag}; read the task, and send the"
                        " change that it still needs"
                    )
                if is_done:
                    return document
        raise Unavailable("others change the same task at this moment", retry_after_seconds=1)

    async def _change(
        self, asked: _Change, lock_wait: str | None = None
    ) -> tuple[TaskDocument, bool, bool] | None:
        """Run the statement that makes one change.

        Return the task, whether it is as the change says, and whether the conditions of the change
        hold; None if there is no task.
        """
        statement = statements.UPDATE_TASK
        values = {**vars(asked), **asdict(asked.author), "lock_wait": lock_wait}
        try:
            async with self._statement() as connection:
                row = await connection.fetchrow(statement, *statement.values(values))
                if row is None:
                    return None
                return _document(row, connection), row["is_done"], row["is_matched"]
        except asyncpg.PostgresError as refused:
            if refused.sqlstate not in _FORBIDDEN_CHANGE:
                raise
            raise Conflict(f"{asked.task_id}: {_FORBIDDEN_CHANGE[refused.sqlstate]}") from refused

    async def _change_group(self, group: Sequence[_Change]) -> list[TaskDocument | None]:
        """Make the changes of several requests, in a statement that commits.

        A change that is not possible, that would change nothing, or that another transaction is in
        the way of is left to its request. So is the second change of a task.
        """
        if len(group) == 1:  # the statement for one task is cheaper
            outcome = await self._change(group[0], _LOCK_WAIT)
            return [outcome[0] if outcome and all(outcome[1:]) else None]
        first_of_each = {asked.task_id: asked for asked in reversed(group)}
        changes = f"[{','.join(asked.to_json() for asked in first_of_each.values())}]"
        async with self._statement() as connection:
            rows = await fetch_rows(
                connection,
                statements.UPDATE_TASKS,
                changes=changes,
                task_ids=list(first_of_each),
                lock_wait=_LOCK_WAIT,
            )
            documents = {row["task_id"]: _document(row, connection) for row in rows}
        return [
            documents.get(asked.task_id) if first_of_each[asked.task_id] is asked else None
            for asked in group
        ]

    @asynccontextmanager
    async def _statement(self) -> AsyncIterator[Connection]:
        """Take a connection for one statement, which commits within the time limit of a write."""
        is_sent = False
        try:
            async with self._database.connection() as connection, AsyncExitStack() as stack:
                if self._settings.write_timeout_seconds < self._settings.statement_timeout_seconds:
                    await stack.enter_async_context(connection.transaction())
                    await self._limit_next(connection, self._deadline())
                is_sent = True
                yield connection
        except (TimedOut, Unavailable) as failure:
            problem = self._meaning(failure, is_sent=is_sent)
            raise problem from failure.__cause__

    def is_queued(self, task: asyncio.Task[Any]) -> bool:
        """Return whether a task that records or updates still waits for its turn to begin."""
        return self._database.queues.writes_hold_back(task)

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
        primary_url = self._settings.primary_url
        if isinstance(failure, ReadOnly) and primary_url is not None:
            failure.detail += f"; the service on the primary is {primary_url}"
            failure.members = {"primary_url": primary_url}
        return failure


def _document(row: asyncpg.Record, connection: Connection) -> TaskDocument:
    return TaskDocument(row["document"], row["etag"], position_in(row, connection))


def _is_small(batches: Sequence[TaskBatch]) -> bool:
    """Return whether a request is one small task, which can be recorded with those of others."""
    return len(batches) == 1 and len(batches[0]) == 1 and len(batches[0].text) <= _SMALL_CHARACTERS


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
