"""Records tasks and answers questions about them. Knows no HTTP."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Self, TypedDict, TypeVar, Unpack
from uuid import UUID

import asyncpg

from audit.deadlines import Deadline, DeadlineExceeded
from audit.errors import (
    Conflict,
    Invalid,
    PreconditionFailed,
    Problem,
    TaskNotFound,
    TimedOut,
    Unavailable,
)
from audit.history import cursor
from audit.history.cursor import Cursor
from audit.history.folding import FoldPace
from audit.history.paging import Page, Pager, PageRequest
from audit.history.parsing import TaskBatch, batch_of, change_of
from audit.history.query import (
    AuditQuery,
    FailuresQuery,
    TaskQuery,
    parse_arguments,
    task_id_of,
)
from audit.history.task import NewTask, TaskDocument, TaskPage, TaskSummary
from audit.history.upkeep import upkeep
from audit.history.validation import ErrorList
from audit.postgres import statements
from audit.postgres.admission import Admission
from audit.postgres.pool import (
    StaleSchema,
    acquired,
    fetch_row,
    open_pool,
    require_current,
    server_of,
)
from audit.settings import Settings
from audit.telemetry.metrics import Deltas, Metrics

if TYPE_CHECKING:
    from audit.postgres.pool import Connection, Pool

Query = TypeVar("Query", bound=TaskQuery)

_ATTEMPTS = 5
#: Partitions made in one transaction; they take a second or so on a busy machine.
_PARTITIONS_AT_ONCE = 25
_TOO_MANY_PARTITIONS = "TA010"
_MICROSECOND = timedelta(microseconds=1)
_FORBIDDEN_CHANGE = {
    "TA001": "the task is in a terminal state and can no longer change",
    "TA002": "a task moves forwards only: pending, approved, executing, then a terminal state",
    "TA003": "a member that may not change is among them",
}


class Filters(TypedDict, total=False):
    """Filters that every list takes; `TaskQuery` describes each. None means "not given"."""

    last: str | None
    since: datetime | str | None
    until: datetime | str | None
    created_by: str | None
    project_id: UUID | str | None
    outcome: Mapping[str, Any] | str | None


class ListParams(Filters, total=False):
    """The same, where to continue, and whether to count."""

    cursor: str | None
    total: Literal["exact", "none"] | None


OneOrMore = str | Sequence[str]


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
class Token:
    """Where two have the same `text`, no task has changed between them."""

    text: str
    clock: datetime
    """The database's, rounded down to a second."""
    server: str = ""
    """It says nothing about the rows of another server."""


class AuditService:
    """The task history in the database that `pool` leads to.

    Every method raises `errors.Invalid` on a value out of bounds, `errors.Unavailable` where the
    database does not answer, and `errors.TimedOut` where a query runs into its time limit.
    """

    def __init__(
        self,
        pool: Pool,
        settings: Settings | None = None,
        *,
        metrics: Metrics | None = None,
    ) -> None:
        """Without `settings`, every setting has its default; the environment is not read."""
        settings = settings or Settings.model_construct()
        self._settings = settings
        self._pool = pool
        self._metrics = metrics or Metrics(statements=statements.names())
        self._partition = settings.partition
        self._most_partitions = settings.max_partitions
        self._fold_pace = FoldPace(settings.max_fold_cells)
        self._max_page_bytes = settings.max_page_bytes
        self._waiting = Deadline(settings.acquire_timeout_seconds)
        self._write_seconds = settings.write_timeout_seconds
        self._statement_seconds = settings.statement_timeout_seconds
        self._queues = Admission(pool.get_max_size(), settings.queue_seconds, self._metrics)
        self._pager = Pager()

    @classmethod
    @asynccontextmanager
    async def open(cls, dsn: str, settings: Settings | None = None) -> AsyncGenerator[Self]:
        """Open the service on a database for as long as the block runs.

        It opens a connection pool, checks the schema, and does the background work of a server:
        it folds the counts and makes partitions ahead. The service cannot be used after the block.

        Raises:
            Invalid: the DSN is not one.
            Unavailable: the database does not let us in, or its schema is not current.
        """
        if not isinstance(dsn, str):
            raise Invalid("dsn: must be text")
        settings = settings or Settings.model_construct()
        async with open_pool(settings, dsn) as pool:
            await require_current(pool)
            service = cls(pool, settings)
            async with upkeep(service):
                yield service

    # --- asking -----------------------------------------------------------------------------------

    async def get_failures(
        self,
        days: int | None = None,
        service: OneOrMore | None = None,
        limit: int = 100,
        offset: int | None = None,
        *,
        intent: OneOrMore | None = None,
        **filters: Unpack[ListParams],
    ) -> TaskPage:
        """Return the tasks that failed in the last `days` (1 to 90) days, newest first.

        `days` is 7 if no other limit of time is given.
        """
        given = {"service": service, "intent": intent, "days": days, "offset": offset, **filters}
        return await self.list_tasks(_query(FailuresQuery, limit=limit, **given))

    async def get_by_service(
        self,
        service_name: OneOrMore,
        status: OneOrMore | None = None,
        days: int | None = None,
        limit: int = 100,
        offset: int | None = None,
        *,
        intent: OneOrMore | None = None,
        **filters: Unpack[ListParams],
    ) -> TaskPage:
        """Return the tasks that touched the service, or all of several, newest first."""
        if not service_name:
            raise Invalid("service_name: must not be empty")
        given = {"service": service_name, "status": status, "intent": intent, "days": days}
        query = _query(AuditQuery, limit=limit, **{**given, "offset": offset, **filters})
        return await self.list_tasks(query)

    async def audit_query(
        self,
        status: OneOrMore | None = None,
        service: OneOrMore | None = None,
        intent: OneOrMore | None = None,
        days: int | None = None,
        limit: int = 100,
        offset: int | None = None,
        **filters: Unpack[ListParams],
    ) -> TaskPage:
        """Return the tasks that match every filter given, newest first; without any, all."""
        given = {"status": status, "service": service, "intent": intent, "days": days}
        query = _query(AuditQuery, limit=limit, **{**given, "offset": offset, **filters})
        return await self.list_tasks(query)

    async def iterate_pages(
        self,
        status: OneOrMore | None = None,
        service: OneOrMore | None = None,
        intent: OneOrMore | None = None,
        days: int | None = None,
        limit: int = 1000,
        **filters: Unpack[ListParams],
    ) -> AsyncGenerator[TaskPage]:
        """Yield the pages of `audit_query` one after the other, following their cursors.

        `limit` is the number of tasks in a page. With a `cursor`, the first page is the one after
        it. Tasks recorded meanwhile do not move the others: none is repeated or skipped.
        """
        given = {"status": status, "service": service, "intent": intent, "days": days}
        query = _query(AuditQuery, limit=limit, **{**given, **filters})
        while True:
            page = await self.list_tasks(query)
            yield page
            if page.next_cursor is None:
                return
            query = query.model_copy(update={"cursor": page.next_cursor, "offset": None})

    async def iterate_tasks(
        self,
        status: OneOrMore | None = None,
        service: OneOrMore | None = None,
        intent: OneOrMore | None = None,
        days: int | None = None,
        limit: int = 1000,
        **filters: Unpack[ListParams],
    ) -> AsyncGenerator[TaskSummary]:
        """Yield every task that matches, newest first; like `iterate_pages`."""
        filters.setdefault("total", "none")
        async for page in self.iterate_pages(status, service, intent, days, limit, **filters):
            for task in page.tasks:
                yield task

    async def get_task_count(
        self,
        status: OneOrMore | None = None,
        service: OneOrMore | None = None,
        intent: OneOrMore | None = None,
        days: int | None = None,
        **filters: Unpack[Filters],
    ) -> int:
        """Return how many tasks match every filter given: the exact `total` of `audit_query`."""
        given = {"status": status, "service": service, "intent": intent, "days": days}
        for name in ("limit", "offset", "cursor", "total"):
            if name in filters:
                raise Invalid(f"{name}: a count has no pages")
        query = _query(AuditQuery, **{**given, **filters})
        page, _ = await self._find(query, 0, None, None)
        assert page.total is not None  # noqa: S101 - it is asked for
        return page.total

    async def list_tasks(
        self, query: TaskQuery, *, clock: datetime | None = None, server: str | None = None
    ) -> TaskPage:
        """Return the page that `query` asks for, and its exact total, of one snapshot.

        `clock` is what `days` count back from; None: the database's, rounded down to a second.
        `server` is the one that a token was read on; None: any.

        Raises:
            Unavailable: also if the connection pool has moved to another server since.
        """
        position = None
        if query.cursor:
            position = cursor.decode(
                query.cursor, query.fingerprint, has_clock=query.span is not None
            )
        clock = position.clock if position else clock
        page, clock = await self._find(query, query.limit, clock, position, server)
        following = Cursor(clock, *page.last, page.total) if page.last else None
        return TaskPage(
            tasks_json=page.tasks_json,
            total=page.total if query.total == "exact" else None,
            limit=query.limit,
            offset=None if position else query.offset or 0,
            next_cursor=following.encode(query.fingerprint) if following else None,
            rows=page.rows,
        )

    async def _find(
        self,
        query: TaskQuery,
        limit: int,
        clock: datetime | None,
        position: Cursor | None,
        server: str | None = None,
    ) -> tuple[Page, datetime | None]:
        """Return the page, and what its `days` count back from."""
        for attempt in range(_ATTEMPTS):
            async with (
                self._queues.reading.slot(again=attempt > 0),
                self._connection() as connection,
            ):
                if server and server_of(connection) != server:
                    raise Unavailable(
                        "the service has moved to another database server", retry_after_seconds=1
                    )
                clock = await _clock(connection, query, clock)
                since = window_start(clock, query.span) if clock and query.span else query.since
                request = PageRequest(query, since, position, limit, self._max_page_bytes)
                page = await self._pager.find(connection, request)
            if page is not None:
                return page, clock
            await self._pager.tally(self._tallying, request)
        raise Unavailable("other servers answer all the time", retry_after_seconds=1)

    async def read_tokens(self) -> AsyncGenerator[Token, None]:
        """Yield what tells whether any task can have changed, read anew each time, without end."""
        async with self._connection() as connection:
            while True:
                row = await fetch_row(connection, statements.READ_TOKEN)
                yield Token(row["token"], row["clock"], server_of(connection))

    async def get_task(
        self, task_id: UUID | str, *, project_id: UUID | None = None
    ) -> TaskDocument:
        """Return one task whole. With a `project_id`, one of another project is not found.

        Raises:
            TaskNotFound: no task has this id.
        """
        task_id = task_id_of(task_id)
        async with self._queues.reading.slot(), self._connection() as connection:
            row = await connection.fetchrow(statements.GET_TASK, task_id, project_id)
        if row is None:
            raise TaskNotFound(f"no task has the id {task_id}")
        return TaskDocument(row["document"], row["etag"])

    # --- recording --------------------------------------------------------------------------------

    async def record(self, tasks: Iterable[NewTask | Mapping[str, Any]]) -> Recorded:
        """Record all of the tasks, or none.

        Those recorded before with the same content count as duplicates and stay as they are.

        Raises:
            Conflict: an id is recorded with other content.
        """
        if isinstance(tasks, str | bytes | Mapping | NewTask) or not isinstance(tasks, Iterable):
            raise Invalid("tasks: must be a list of tasks")
        return await self.record_batches([batch_of(tasks, self._settings)])

    async def record_batches(self, batches: Sequence[TaskBatch]) -> Recorded:
        """Record validated batches, all in one transaction; like `record`."""
        async with self._queues.writing.slot(question=lambda: hash(tuple(b.text for b in batches))):
            deadline = time.monotonic() + self._write_seconds
            for attempt in range(_ATTEMPTS):
                try:
                    return await self._record_once(batches, deadline)
                except StaleSchema:
                    if attempt:
                        raise
                except asyncpg.CheckViolationError as refused:
                    # Only a missing partition has no name of a constraint.
                    if refused.constraint_name is not None:
                        raise
                    await self._make_partitions(batches)
                    deadline = time.monotonic() + self._write_seconds
                except (asyncpg.DeadlockDetectedError, asyncpg.UniqueViolationError):
                    # Another transaction records the same ids, in another order or by plain SQL.
                    continue
        raise Unavailable("others record the same tasks at this moment", retry_after_seconds=1)

    async def _record_once(self, batches: Sequence[TaskBatch], deadline: float) -> Recorded:
        recorded = 0
        task_ids: list[str] = []
        is_committing = False
        try:
            async with self._connection() as connection, connection.transaction():
                for batch in batches:
                    await self._limit_next(connection, deadline)
                    row = await fetch_row(connection, statements.RECORD_TASKS, batch.text)
                    if row["too_late"]:
                        raise self._too_late(json.loads(row["too_late"]), batch)
                    if row["known_ids"]:
                        await self._refuse_conflicts(connection, row)
                    recorded += row["recorded"]
                    task_ids += json.loads(row["task_ids"] or "[]")
                is_committing = True
        except (TimedOut, Unavailable) as failure:
            problem = self._of_write(failure, is_sent=is_committing)
            raise problem from failure.__cause__
        duplicates = len(task_ids) - recorded
        self._metrics.recorded(recorded, duplicates)
        return Recorded(recorded, duplicates, task_ids)

    async def _limit_next(self, connection: Connection, deadline: float) -> None:
        """Have PostgreSQL end the next statement of a transaction at the deadline."""
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimedOut("")
        if left < self._statement_seconds:
            await connection.execute(f"SET LOCAL statement_timeout = {math.ceil(left * 1000)}")

    def _of_write(self, failure: Problem, *, is_sent: bool) -> Problem:
        """Return what a failure of the database means to a client that sent a change.

        `is_sent` says whether the statement that commits was sent.
        """
        if is_sent and not _is_answer(failure.__cause__):
            return Unavailable(
                "the database did not confirm the change, which may be made or not;"
                " send the request again, with the same task_id",
                retry_after_seconds=1,
            )
        if isinstance(failure, TimedOut):
            seconds = min(self._write_seconds, self._statement_seconds)
            return TimedOut(
                f"the database did not finish within {seconds:g} seconds"
                " (write_timeout_seconds, statement_timeout_seconds) and undid the change;"
                " nothing is recorded"
            )
        failure.detail += "; nothing is recorded"
        return failure

    def _too_late(self, positions: Sequence[int], batch: TaskBatch) -> Problem:
        errors = ErrorList(self._settings)
        for position in positions:
            errors.add(
                f"{batch.labels[position]}created_at",
                "must not be more than 24 hours ahead of the database's clock",
            )
        return errors.problem()

    @staticmethod
    async def _refuse_conflicts(connection: Connection, row: asyncpg.Record) -> None:
        conflicts = await connection.fetchval(
            statements.FIND_CONFLICTS, row["known_ids"], row["known_digests"]
        )
        if conflicts:
            more = f" and {len(conflicts) - 10} more" if len(conflicts) > 10 else ""  # noqa: PLR2004
            raise Conflict(f"recorded with other content: {', '.join(conflicts[:10])}{more}")

    async def _make_partitions(self, batches: Sequence[TaskBatch]) -> None:
        times = [time for batch in batches for time in batch.times]
        await self._make_in_portions(statements.MAKE_PARTITIONS, times)

    async def make_coming_partitions(self) -> None:
        """Make the partitions of the present and the next three months, where they are missing."""
        await self._make_in_portions(statements.MAKE_COMING_PARTITIONS)

    async def _make_in_portions(self, statement: str, *values: object) -> None:
        """Make partitions, each portion in a transaction of its own, so that a retry goes on.

        Raises:
            Invalid: there would be more than `max_partitions`.
        """
        limits = (self._partition, _PARTITIONS_AT_ONCE, self._most_partitions)
        made = 1
        while made:
            try:
                async with self._connection() as connection:
                    made = await connection.fetchval(statement, *values, *limits)
            except asyncpg.PostgresError as refused:
                if refused.sqlstate != _TOO_MANY_PARTITIONS:
                    raise
                raise Invalid(
                    f"created_at: these times need more than {self._most_partitions:,} partitions"
                    " of the history, the limit set by max_partitions"
                ) from refused

    async def update(
        self, task_id: UUID | str, change: Mapping[str, Any], *, if_match: str | None = None
    ) -> TaskDocument:
        """Move an open task on and fill in what is known; return it whole. None clears a member.

        With `if_match`, the `etag` of a document, the task is changed only if it is still in that
        state. A change that leaves the task as it is writes nothing, so that it may be sent again.

        Raises:
            TaskNotFound: no task has this id.
            PreconditionFailed: the task has another entity tag than `if_match`.
            Conflict: the task is terminal, or the change goes backwards or may not be made.
        """
        return await self.update_validated(
            task_id,
            change_of(change, self._settings),
            match=None if if_match is None else [if_match],
        )

    async def update_validated(
        self,
        task_id: UUID | str,
        change: str,
        *,
        project_id: UUID | None = None,
        match: Sequence[str] | None = None,
        none_match: Sequence[str] | None = None,
    ) -> TaskDocument:
        """Make a change that `parse_change` has validated; like `update`.

        The task must have one of the entity tags of `match` and none of `none_match`; "*" is any.
        """
        task_id = task_id_of(task_id)
        values = (task_id, change, project_id, match, none_match)
        async with self._queues.writing.slot(question=lambda: (task_id, change)):
            for _ in range(_ATTEMPTS):
                row = await self._update_once(*values)
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

    async def _update_once(self, task_id: UUID, *values: object) -> asyncpg.Record | None:
        """Run the statement that changes a task, within the time of a write."""
        is_sent = False
        try:
            async with self._connection() as connection, AsyncExitStack() as stack:
                if self._write_seconds < self._statement_seconds:
                    await stack.enter_async_context(connection.transaction())
                    await self._limit_next(connection, time.monotonic() + self._write_seconds)
                is_sent = True
                return await connection.fetchrow(statements.UPDATE_TASK, task_id, *values)
        except (TimedOut, Unavailable) as failure:
            problem = self._of_write(failure, is_sent=is_sent)
            raise problem from failure.__cause__
        except asyncpg.PostgresError as refused:
            if refused.sqlstate not in _FORBIDDEN_CHANGE:
                raise
            raise Conflict(f"{task_id}: {_FORBIDDEN_CHANGE[refused.sqlstate]}") from refused

    # --- counting ---------------------------------------------------------------------------------

    async def fold_counts(self) -> int:
        """Move what writers have noted into the counts; return how many changes were moved.

        Answers are exact whether or not it runs, but they get slower with each change that is not
        folded. It works in portions, each a transaction, until nothing is left; if another process
        folds, it returns at once.

        Raises:
            TimedOut: a portion ran out of time. The next call tries a smaller one.
        """
        folded = 0
        is_last = False
        while not is_last:
            try:
                async with self._connection() as connection:
                    row = await fetch_row(
                        connection,
                        statements.FOLD_COUNTS,
                        self._fold_pace.cells,
                        self._fold_pace.split_seconds,
                    )
            except (TimedOut, DeadlineExceeded):
                self._fold_pace.timed_out()
                raise
            if row["folded"] is None:
                return folded
            self._fold_pace.succeeded()
            folded += row["folded"]
            is_last = row["is_last"]
            if row["folded"] and row["may_vacuum"]:
                async with self._connection() as connection:
                    await connection.execute(statements.VACUUM_DELTAS)
        self._metrics.folded()
        return folded

    async def measure_deltas(self, timeout_seconds: float) -> Deltas | None:
        """Return how much is not folded; None: the database did not tell in that time."""
        try:
            async with asyncio.timeout(timeout_seconds), self._connection() as connection:
                row = await fetch_row(connection, statements.MEASURE_DELTAS)
        except (TimeoutError, Problem, asyncpg.PostgresError):
            return None
        return Deltas(row["estimate"], row["size_bytes"])

    async def check_counts(self) -> list[asyncpg.Record]:
        """Recount all tasks; return the counts that differ, as `check_counts.sql` shows them."""
        async with self._connection() as connection:
            return await connection.fetch(statements.CHECK_COUNTS)

    async def find_missing_partitions(self) -> list[asyncpg.Record]:
        """Return the times of known tasks that no partition holds, as the statement shows them."""
        async with self._connection() as connection:
            return await connection.fetch(statements.FIND_MISSING_PARTITIONS)

    async def lock_shortage(self) -> str | None:
        """Say what PostgreSQL has too few locks for; None: it has enough for any list."""
        async with self._connection() as connection:
            locks = await fetch_row(connection, statements.MEASURE_LOCKS)
        # Two such statements at once, at least.
        if 2 * locks["needed"] <= locks["room"]:
            return None
        return (
            f"a list over the whole history locks {locks['partitions']:,} partitions with their"
            f" indexes, {locks['needed']:,} locks, and PostgreSQL has room for {locks['room']:,}:"
            " raise its max_locks_per_transaction"
        )

    async def rebuild_counts(self) -> int:
        """Count all tasks anew, while others record; return how many there are."""
        async with self._connection() as connection:
            row = await fetch_row(connection, statements.REBUILD_COUNTS)
        return int(row["counted"])

    def is_queued(self, task: asyncio.Task[Any]) -> bool:
        """Return whether a task that records or updates still waits for its turn to begin."""
        return self._queues.writing.holds_back(task)

    @asynccontextmanager
    async def _tallying(self, *, again: bool) -> AsyncIterator[Connection]:
        async with self._queues.tallying.slot(again=again), self._connection() as connection:
            yield connection

    def _connection(self) -> AbstractAsyncContextManager[Connection]:
        return acquired(self._pool, self._waiting, self._metrics)


def _is_answer(failure: BaseException | None) -> bool:
    """Return whether PostgreSQL answered a statement with an error, so that it is undone."""
    if isinstance(failure, asyncpg.QueryCanceledError):
        return True
    is_end = isinstance(
        failure, asyncpg.PostgresConnectionError | asyncpg.OperatorInterventionError
    )
    return isinstance(failure, asyncpg.PostgresError) and not is_end


async def _clock(
    connection: Connection, query: TaskQuery, clock: datetime | None
) -> datetime | None:
    """Return what `days` count back from, the database's clock if none is given; else None."""
    if query.span is None:
        return None
    return clock or (await fetch_row(connection, statements.READ_TOKEN))["clock"]


def window_start(clock: datetime, span: timedelta) -> datetime:
    """Return the first time that is later than `span` before `clock`."""
    return clock - span + _MICROSECOND


def _query(model: type[Query], *, limit: object = 100, **given: object) -> Query:
    """Validate arguments by the rules of a URL. None means "not given", except as a `limit`."""
    given = {name: value for name, value in given.items() if value is not None}
    return parse_arguments(model, {**given, "limit": limit})
