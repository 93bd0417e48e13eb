"""Reads the event log: the history of a task, and the size of the log. Knows no HTTP."""

from __future__ import annotations

from uuid import UUID

from audit.errors import TaskNotFound
from audit.history.cursor import encode_event
from audit.history.events import HistoryPage, TaskVersion
from audit.history.query import HistoryQuery
from audit.postgres import statements
from audit.postgres.database import Database
from audit.postgres.pool import fetch_rows
from audit.settings import Settings
from audit.telemetry.metrics import LogSize, Replication


class Log:
    """The events of tasks: those in the log, and those that still wait in its queue."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._max_page_bytes = settings.max_page_bytes

    async def get_history(
        self, query: HistoryQuery, *, project_id: UUID | None = None
    ) -> HistoryPage:
        """Return a page of the events of a task, from one snapshot.

        With a `project_id`, the task must be of this project.

        Raises:
            TaskNotFound: no task has this id.
        """
        values = statements.GET_HISTORY.values(
            {
                "task_id": query.task_id,
                "project_id": project_id,
                "after": query.after,
                "limit": query.limit,
                "max_bytes": self._max_page_bytes,
            }
        )
        async with self._database.reading() as connection:
            row = await connection.fetchrow(statements.GET_HISTORY, *values)
        if row is None:
            raise TaskNotFound(f"no task has the id {query.task_id}")
        return HistoryPage(
            task_id=query.task_id,
            events_json=row["events"],
            next_cursor=encode_event(row["last_id"], query.task_id) if row["has_more"] else None,
            rows=row["shown"],
        )

    async def get_versions(self, page: HistoryPage, query: HistoryQuery) -> list[TaskVersion]:
        """Return the task as it was after each event of a page that `query` has got."""
        async with self._database.reading() as connection:
            rows = await fetch_rows(
                connection,
                statements.GET_VERSIONS,
                task_id=query.task_id,
                after=query.after,
                limit=page.rows,
            )
        return [
            TaskVersion(event, row["document"])
            for event, row in zip(page.events, rows, strict=True)
        ]

    async def measure(self, timeout_seconds: float) -> LogSize | None:
        """Return the size of the log; None if the database does not answer in time."""
        row = await self._database.measure(statements.MEASURE_LOG, timeout_seconds)
        return None if row is None else LogSize(**row)

    async def measure_replication(self, timeout_seconds: float) -> Replication | None:
        """Return what keeps old rows and WAL; None if the database does not answer in time."""
        row = await self._database.measure(statements.MEASURE_REPLICATION, timeout_seconds)
        return None if row is None else Replication(**row)
