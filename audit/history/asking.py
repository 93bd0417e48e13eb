"""Reads the task history: pages, totals and single tasks. Knows no HTTP."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID

from audit.errors import TaskNotFound, Unavailable
from audit.history.changes import Changes
from audit.history.freshness import Version
from audit.history.location import PageRequest
from audit.history.paging import Pager
from audit.history.query import TaskFilter, TaskQuery, task_id_of
from audit.history.tallies import NOT_COUNTED
from audit.history.task import TaskDocument, TaskPage
from audit.postgres import statements
from audit.postgres.database import Database
from audit.postgres.pool import fetch_row, server_of
from audit.settings import Settings

if TYPE_CHECKING:
    from audit.postgres.pool import Connection

_ATTEMPTS = 5
#: How much of a window is searched for the next task that leaves it.
_SEARCHED = timedelta(days=1)


class Reading:
    """Answers queries from the database."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self.max_page_bytes = settings.max_page_bytes
        self.pager = Pager()

    async def list_tasks(
        self, query: TaskQuery, *, clock: datetime | None = None, server: str | None = None
    ) -> TaskPage:
        """Return the page that `query` asks for, and its exact total, from one snapshot.

        `days` count back from `clock`; without it, from the database's clock, rounded down to a
        second. With `server`, the page is read on that server or not at all.

        Raises:
            Unavailable: also if the connection pool has moved away from `server`.
        """
        position = query.position
        return await self._find(query, query.limit, position.clock if position else clock, server)

    async def count_tasks(self, query: TaskQuery) -> int:
        """Return how many tasks match the filters of `query`."""
        page = await self._find(query, 0)
        assert page.total is not None  # noqa: S101 - the query asks for it
        return page.total

    async def _find(
        self,
        query: TaskQuery,
        limit: int,
        clock: datetime | None = None,
        server: str | None = None,
    ) -> TaskPage:
        for attempt in range(_ATTEMPTS):
            async with self._database.reading(again=attempt > 0) as connection:
                require_server(connection, server)
                clock = await _clock(connection, query, clock)
                since = query.window_start(clock)
                request = PageRequest(query, since, limit, self.max_page_bytes, clock)
                page = await self.pager.find(connection, request)
            if page is not None:
                return page
            await self.pager.tally(self._database.tallying, request)
        raise Unavailable(NOT_COUNTED, retry_after_seconds=1)

    async def next_departure(self, query: TaskFilter, *, clock: datetime, server: str) -> datetime:
        """Return when the next task leaves the window of `query`, if that ends at `clock` now.

        It may be earlier, but not later. The window must be one that moves with the clock.

        Raises:
            Unavailable: also if the connection pool has moved away from `server`.
        """
        since = query.window_start(clock)
        assert since is not None  # noqa: S101 - the window moves
        assert query.span is not None  # noqa: S101
        async with self._database.reading() as connection:
            require_server(connection, server)
            row = await fetch_row(
                connection,
                statements.READ_DEPARTURE,
                **query.filter_values(since),
                search_until=since + _SEARCHED,
            )
        departing: datetime = row["departing"]
        return departing + query.span

    async def read_versions(self, changes: Changes) -> AsyncGenerator[Version, None]:
        """Yield the current version without end, each time read anew, on one connection."""
        async with self._database.connection() as connection:
            while True:
                yield await changes.read(connection)

    async def get_task(
        self, task_id: UUID | str, *, project_id: UUID | None = None
    ) -> TaskDocument:
        """Return one task with all its fields. With a `project_id`, only if it is of this project.

        Raises:
            TaskNotFound: no task has this id.
        """
        task_id = task_id_of(task_id)
        async with self._database.reading() as connection:
            row = await connection.fetchrow(statements.GET_TASK, task_id, project_id)
        if row is None:
            raise TaskNotFound(f"no task has the id {task_id}")
        return TaskDocument(row["document"], row["etag"])


def require_server(connection: Connection, server: str | None) -> None:
    """Raise Unavailable if the connection is on another server than this one."""
    if server and server_of(connection) != server:
        raise Unavailable("the service has moved to another database server", retry_after_seconds=1)


async def _clock(
    connection: Connection, query: TaskQuery, clock: datetime | None
) -> datetime | None:
    """Return the clock that `days` count back from; None if the query has no such window."""
    if query.span is None:
        return None
    return clock or (await fetch_row(connection, statements.READ_SNAPSHOT))["clock"]
