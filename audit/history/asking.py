"""Reads the task history: pages, totals and single tasks. Knows no HTTP."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING
from uuid import UUID

from audit.errors import TaskNotFound, Unavailable
from audit.history.changes import Changes
from audit.history.freshness import Version
from audit.history.location import PageRequest
from audit.history.query import TaskFilter, TaskQuery, task_id_of
from audit.history.sources import Source, Sources
from audit.history.tallies import NOT_COUNTED
from audit.history.task import TaskDocument, TaskPage
from audit.postgres import statements
from audit.postgres.database import Database
from audit.postgres.pool import fetch_row
from audit.settings import Settings

if TYPE_CHECKING:
    from audit.postgres.pool import Connection

_ATTEMPTS = 5
#: How much of a window is searched for the next task that leaves it.
_SEARCHED = timedelta(days=1)


class Reading:
    """Answers queries from the database, or for a version of the history from a standby."""

    def __init__(self, database: Database, settings: Settings, sources: Sources) -> None:
        self._database = database
        self._sources = sources
        self.max_page_bytes = settings.max_page_bytes

    async def list_tasks(
        self, query: TaskQuery, *, version: Version | None = None, clock: datetime | None = None
    ) -> TaskPage:
        """Return the page that `query` asks for, and its exact total, from one snapshot.

        `days` count back from `clock`; without it, from the clock of the version, or else from the
        database's clock, rounded down to a second. With a version, the page is of this version or a
        later one.

        Raises:
            Unavailable: also if no server has the version any more.
        """
        position = query.position
        if clock is None and version is not None:
            clock = version.clock
        return await self._find(query, query.limit, position.clock if position else clock, version)

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
        version: Version | None = None,
    ) -> TaskPage:
        async def find(source: Source) -> TaskPage:
            now = clock
            for attempt in range(_ATTEMPTS):
                async with source.reading(version, again=attempt > 0) as connection:
                    now = await _clock(connection, query, now)
                    since = query.window_start(now)
                    request = PageRequest(query, since, limit, self.max_page_bytes, now)
                    page = await source.pager.find(connection, request)
                if page is not None:
                    return page
                await source.pager.tally(partial(source.tallying, version), request)
            raise Unavailable(NOT_COUNTED, retry_after_seconds=1)

        return await self._sources.run(version, find)

    async def next_departure(self, query: TaskFilter, *, version: Version) -> datetime:
        """Return when the next task leaves the window of `query`, if that ends at `version`.

        It may be earlier, but not later. The window must be one that moves with the clock.

        Raises:
            Unavailable: also if no server has the version any more.
        """
        since = query.window_start(version.clock)
        assert since is not None  # noqa: S101 - the window moves
        assert query.span is not None  # noqa: S101

        async def read(source: Source) -> datetime:
            async with source.reading(version) as connection:
                row = await fetch_row(
                    connection,
                    statements.READ_DEPARTURE,
                    **query.filter_values(since),
                    search_until=since + _SEARCHED,
                )
            departing: datetime = row["departing"]
            return departing

        return await self._sources.run(version, read) + query.span

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


async def _clock(
    connection: Connection, query: TaskQuery, clock: datetime | None
) -> datetime | None:
    """Return the clock that `days` count back from; None if the query has no such window."""
    if query.span is None:
        return None
    return clock or (await fetch_row(connection, statements.READ_SNAPSHOT))["clock"]
