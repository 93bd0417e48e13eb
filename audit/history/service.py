"""The interface of the task history for Python programs. Knows no HTTP."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, Self, Unpack
from uuid import UUID

from audit.errors import Invalid
from audit.history.arguments import (
    CountParams,
    DurationParams,
    FacetParams,
    HistogramParams,
    IterateParams,
    OneOrMore,
    PageParams,
)
from audit.history.asking import Reading
from audit.history.backfill import Backfill
from audit.history.events import HistoryPage, TaskEvent, TaskVersion
from audit.history.feed import Feed
from audit.history.log import Log
from audit.history.parsing import batch_of, change_of
from audit.history.partitions import Partitions
from audit.history.positions import Positions
from audit.history.query import (
    AuditQuery,
    FailuresQuery,
    HistoryQuery,
    Params,
    parse_arguments,
)
from audit.history.recording import Author, Recording
from audit.history.sources import Sources
from audit.history.staleness import Staleness
from audit.history.statistics import Statistics
from audit.history.statistics_body import Durations, Facets, Histogram
from audit.history.statistics_query import DurationsQuery, FacetsQuery, HistogramQuery
from audit.history.task import NewTask, Recorded, TaskDocument, TaskPage, TaskSummary
from audit.history.upkeep import Upkeep
from audit.postgres import statements
from audit.postgres.database import Database
from audit.postgres.pool import open_pool
from audit.postgres.schema import require_current
from audit.settings import DEFAULTS, Settings
from audit.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from audit.postgres.pool import Pool

_LONGEST_ACTOR: Final = 255


class AuditService:
    """The task history in a PostgreSQL database.

    Every method raises `errors.Invalid` if a value is out of bounds, `errors.Unavailable` if the
    database does not answer, and `errors.TimedOut` if a query exceeds its time limit.

    The attributes are for the HTTP service and the commands. They take values that are validated.
    """

    def __init__(
        self,
        pool: Pool,
        settings: Settings | None = None,
        *,
        metrics: Metrics | None = None,
        standbys: Mapping[str, Pool] | None = None,
    ) -> None:
        """Without `settings`, every setting has its default; the environment is not read.

        `standbys` are pools of standbys, by host and port, for the answers of the HTTP service.
        """
        settings = settings or DEFAULTS
        metrics = metrics or Metrics(statements=statements.NAMES)
        database = self.database = Database(pool, settings, metrics)
        self._settings = settings
        self.partitions = Partitions(database, settings)
        self.sources = Sources(database, standbys or {}, settings, metrics)
        self.reading = Reading(database, settings, self.sources)
        self.positions = Positions(database, settings)
        self.staleness = Staleness(database)
        self.statistics = Statistics(self.sources, self.reading, settings)
        self.log = Log(database, settings)
        self.recording = Recording(database, settings, metrics, self.partitions)
        self.upkeep = Upkeep(database, settings, metrics, self.partitions)
        self.feed = Feed(database, settings, metrics, self.upkeep.sequence_portion)
        self.backfill = Backfill(database, self.upkeep)

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
        settings = settings or DEFAULTS
        async with open_pool(settings, dsn) as pool:
            await require_current(pool)
            service = cls(pool, settings)
            async with service.upkeep.running():
                yield service

    async def get_failures(
        self,
        days: int | None = None,
        service: OneOrMore | None = None,
        limit: int = 100,
        offset: int | None = None,
        *,
        intent: OneOrMore | None = None,
        **filters: Unpack[PageParams],
    ) -> TaskPage:
        """Return the tasks that failed in the last `days` (1 to 90) days, newest first.

        `days` is 7 if no other limit of time is given.
        """
        given = {"service": service, "intent": intent, "days": days, "offset": offset, **filters}
        return await self.reading.list_tasks(_query(FailuresQuery, limit=limit, **given))

    async def get_by_service(
        self,
        service_name: OneOrMore,
        status: OneOrMore | None = None,
        days: int | None = None,
        limit: int = 100,
        offset: int | None = None,
        *,
        intent: OneOrMore | None = None,
        **filters: Unpack[PageParams],
    ) -> TaskPage:
        """Return the tasks that touched the service, or all of several, newest first."""
        if not service_name:
            raise Invalid("service_name: must not be empty")
        return await self.audit_query(status, service_name, intent, days, limit, offset, **filters)

    async def audit_query(
        self,
        status: OneOrMore | None = None,
        service: OneOrMore | None = None,
        intent: OneOrMore | None = None,
        days: int | None = None,
        limit: int = 100,
        offset: int | None = None,
        **filters: Unpack[PageParams],
    ) -> TaskPage:
        """Return the tasks that match every filter given, newest first; without any, all."""
        given = {"status": status, "service": service, "intent": intent, "days": days}
        query = _query(AuditQuery, limit=limit, **{**given, "offset": offset, **filters})
        return await self.reading.list_tasks(query)

    async def iterate_pages(
        self, status: OneOrMore | None = None, **filters: Unpack[IterateParams]
    ) -> AsyncGenerator[TaskPage]:
        """Yield the pages of `audit_query` one after the other, following their cursors.

        `limit` is the number of tasks in a page, 1000 if not given. With a `cursor`, the first page
        is the one after it. Tasks recorded meanwhile do not move the others: none is repeated or
        skipped.
        """
        given = {"status": status, "limit": 1000, **filters}
        while True:
            page = await self.reading.list_tasks(_query(AuditQuery, **given))
            yield page
            if page.next_cursor is None:
                return
            given = {**given, "cursor": page.next_cursor, "offset": None}

    async def iterate_tasks(
        self, status: OneOrMore | None = None, **filters: Unpack[IterateParams]
    ) -> AsyncGenerator[TaskSummary]:
        """Yield every task that matches, newest first; like `iterate_pages`."""
        filters.setdefault("total", "none")
        async for page in self.iterate_pages(status, **filters):
            for task in page.tasks:
                yield task

    async def get_task_count(
        self, status: OneOrMore | None = None, **filters: Unpack[CountParams]
    ) -> int:
        """Return how many tasks match every filter given: the exact `total` of `audit_query`."""
        for name in ("limit", "offset", "cursor", "total"):
            if name in filters:
                raise Invalid(f"{name}: a count has no pages")
        return await self.reading.count_tasks(_query(AuditQuery, **{"status": status, **filters}))

    async def get_histogram(
        self, status: OneOrMore | None = None, **given: Unpack[HistogramParams]
    ) -> Histogram:
        """Return how many tasks match every filter given, by time and state.

        Raises:
            TooMany: the counts do not know the filters, and too many tasks match.
        """
        query = _filter(HistogramQuery, status=status, **given)
        return (await self.statistics.histogram(query)).body

    async def get_facets(
        self, facet: OneOrMore, status: OneOrMore | None = None, **given: Unpack[FacetParams]
    ) -> Facets:
        """Return the most frequent values of `facet` among the tasks that match every filter.

        A facet for which too many tasks would have to be read is a `FacetRefused`.
        """
        query = _filter(FacetsQuery, facet=facet, status=status, **given)
        return (await self.statistics.facets(query)).body

    async def get_durations(
        self, status: OneOrMore | None = None, **given: Unpack[DurationParams]
    ) -> Durations:
        """Return how long the tasks took that match every filter given.

        Raises:
            TooMany: too many tasks match.
        """
        query = _filter(DurationsQuery, status=status, **given)
        return (await self.statistics.durations(query)).body

    async def get_task(
        self, task_id: UUID | str, *, project_id: UUID | None = None
    ) -> TaskDocument:
        """Return one task with all its fields. With a `project_id`, only if it is of this project.

        Raises:
            TaskNotFound: no task has this id.
        """
        return await self.reading.get_task(task_id, project_id=project_id)

    async def get_history(
        self, task_id: UUID | str, limit: int = 100, *, cursor: str | None = None
    ) -> HistoryPage:
        """Return a page of the events of a task, oldest first: who changed what, and when.

        Raises:
            TaskNotFound: no task has this id.
        """
        given = {"task_id": task_id, "cursor": cursor}
        return await self.log.get_history(_query(HistoryQuery, limit=limit, **given))

    async def iterate_history(self, task_id: UUID | str) -> AsyncGenerator[TaskEvent]:
        """Yield every event of a task, oldest first; like `get_history`."""
        async for page, _ in self._iterate_history(task_id):
            for event in page.events:
                yield event

    async def iterate_versions(self, task_id: UUID | str) -> AsyncGenerator[TaskVersion]:
        """Yield the task as it was after each of its events, oldest first."""
        async for page, query in self._iterate_history(task_id, limit=100):
            for version in await self.log.get_versions(page, query):
                yield version

    async def _iterate_history(
        self, task_id: UUID | str, limit: int = 1000
    ) -> AsyncGenerator[tuple[HistoryPage, HistoryQuery]]:
        cursor = None
        while True:
            query = _query(HistoryQuery, task_id=task_id, limit=limit, cursor=cursor)
            page = await self.log.get_history(query)
            yield page, query
            cursor = page.next_cursor
            if cursor is None:
                return

    async def record(
        self, tasks: Iterable[NewTask | Mapping[str, Any]], *, actor: str | None = None
    ) -> Recorded:
        """Record all of the tasks, or none. The event log names the `actor` who did so.

        Those recorded before with the same content count as duplicates and stay as they are.

        Raises:
            Conflict: an id is recorded with other content.
        """
        if isinstance(tasks, str | bytes | Mapping | NewTask) or not isinstance(tasks, Iterable):
            raise Invalid("tasks: must be a list of tasks")
        author = _author(actor)
        return await self.recording.record_batches([batch_of(tasks, self._settings)], author)

    async def update(
        self,
        task_id: UUID | str,
        change: Mapping[str, Any],
        *,
        if_match: str | None = None,
        actor: str | None = None,
    ) -> TaskDocument:
        """Move an open task on and fill in what is known; return it whole. None clears a member.

        With `if_match`, the `etag` of a document, the task is changed only if it is still in that
        state. A change that leaves the task as it is writes nothing, so it can be sent again. The
        event log names the `actor` who changed the task.

        Raises:
            TaskNotFound: no task has this id.
            PreconditionFailed: the task has another entity tag than `if_match`.
            Conflict: the task is terminal, or the change goes backwards or is not allowed.
        """
        return await self.recording.update(
            task_id,
            change_of(change, self._settings),
            match=None if if_match is None else [if_match],
            author=_author(actor),
        )


def _author(actor: str | None) -> Author:
    if actor is not None and not (
        isinstance(actor, str) and 0 < len(actor) <= _LONGEST_ACTOR and actor.isprintable()
    ):
        raise Invalid(f"actor: must be text of 1 to {_LONGEST_ACTOR} printable characters")
    return Author(actor)


def _query(model: type[Params], *, limit: object = 100, **given: object) -> Params:
    """Validate arguments by the rules of a URL. None means "not given", except as a `limit`."""
    return parse_arguments(model, {**_without_none(given), "limit": limit})


def _filter(model: type[Params], **given: object) -> Params:
    """Validate arguments that have no page; like `_query`."""
    return parse_arguments(model, _without_none(given))


def _without_none(given: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in given.items() if value is not None}
