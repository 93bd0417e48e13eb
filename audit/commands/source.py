"""Reads the task history for people, from a service or from a database, as the same JSON text."""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from uuid import UUID

import typer

from audit.commands.options import refused_option
from audit.commands.output import note
from audit.errors import Invalid, Malformed, Unauthenticated, Unavailable

if TYPE_CHECKING:
    from audit.client import AsyncClient
    from audit.commands.place import Place
    from audit.history.service import AuditService
    from audit.history.statistics_body import Statistic

_Result = TypeVar("_Result")

#: The parameters of a route, as in its URL.
Params = Mapping[str, str | Sequence[str]]


class Source(Protocol):
    """Answers with the bodies of the routes of the service.

    Each method raises the `Problem` that the service would answer, and `Unavailable` if it does
    not answer.
    """

    async def list_tasks(self, route: str, params: Params) -> str:
        """Return a page of the route `failures` or `query`."""

    async def get_task(self, task_id: UUID) -> str:
        """Return one task."""

    async def get_history(self, task_id: UUID, params: Params) -> str:
        """Return a page of the events of a task."""

    async def get_statistics(self, name: str, params: Params) -> str:
        """Return the statistic of a name, such as `histogram`."""

    async def get_changes(self, params: Params) -> str:
        """Return the next changes; it may wait for some."""


class ServiceSource:
    """Asks a running service."""

    def __init__(self, client: AsyncClient, url: str) -> None:
        self._client = client
        self._url = url

    async def list_tasks(self, route: str, params: Params) -> str:
        """Return a page of the route `failures` or `query`."""
        return await self._get(f"/{route}", "next_cursor", params)

    async def get_task(self, task_id: UUID) -> str:
        """Return one task."""
        return await self._get(f"/tasks/{task_id}", "task_id")

    async def get_history(self, task_id: UUID, params: Params) -> str:
        """Return a page of the events of a task."""
        return await self._get(f"/tasks/{task_id}/history", "next_cursor", params)

    async def get_statistics(self, name: str, params: Params) -> str:
        """Return the statistic of a name, such as `histogram`."""
        member = "tasks" if name == "durations" else "total"
        return await self._get(f"/statistics/{name}", member, params)

    async def get_changes(self, params: Params) -> str:
        """Return the next changes; it may wait for some."""
        return await self._get("/changes", "position", params)

    async def whoami(self) -> str:
        """Return whom the key belongs to."""
        return await self._get("/whoami", "scopes")

    async def _get(self, path: str, member: str, params: Params | None = None) -> str:
        """Send a request. The body must be an object with this member, as the service sends it."""
        from audit.client.calls import get_text
        from audit.commands.service_url import naming

        with naming(self._url):
            body = await self._client.send(get_text(path, params or {}))
        if not body.startswith("{") or f'"{member}' not in body:
            raise Unavailable(f"{self._url} is not a task-audit service")
        return body


class DatabaseSource:
    """Asks a database, without a service."""

    def __init__(self, service: AuditService) -> None:
        self._service = service

    async def list_tasks(self, route: str, params: Params) -> str:
        """Return a page of the route `failures` or `query`."""
        from audit.history.query import AuditQuery, FailuresQuery, TaskQuery, parse_query

        models: dict[str, type[TaskQuery]] = {"failures": FailuresQuery, "query": AuditQuery}
        query = parse_query(models[route], _as_lists(params))
        page = await self._service.reading.list_tasks(query)
        return page.to_json().decode()

    async def get_task(self, task_id: UUID) -> str:
        """Return one task."""
        return (await self._service.get_task(task_id)).json

    async def get_history(self, task_id: UUID, params: Params) -> str:
        """Return a page of the events of a task."""
        from audit.history.query import HistoryQuery, parse_query

        query = parse_query(HistoryQuery, {"task_id": [str(task_id)], **_as_lists(params)})
        return (await self._service.log.get_history(query)).body.decode()

    async def get_statistics(self, name: str, params: Params) -> str:
        """Return the statistic of a name, such as `histogram`."""
        from audit.history.query import parse_query
        from audit.history.statistics_query import DurationsQuery, FacetsQuery, HistogramQuery

        ask, given = self._service.statistics, _as_lists(params)
        statistic: Statistic[Any]
        match name:
            case "histogram":
                statistic = await ask.histogram(parse_query(HistogramQuery, given))
            case "facets":
                statistic = await ask.facets(parse_query(FacetsQuery, given))
            case _:
                statistic = await ask.durations(parse_query(DurationsQuery, given))
        return statistic.to_json().decode()

    async def get_changes(self, params: Params) -> str:
        """Return the next changes; it may wait for some."""
        from audit.history.feed_query import ChangesQuery
        from audit.history.query import parse_query

        query = parse_query(ChangesQuery, _as_lists(params))
        max_bytes = self._service.reading.max_page_bytes
        return (await self._service.feed.poll(query, max_bytes=max_bytes)).body.decode()


def _as_lists(params: Params) -> dict[str, list[str]]:
    """Return parameters with a list of values for each name, as in a URL."""
    return {
        name: [values] if isinstance(values, str) else list(values)
        for name, values in params.items()
    }


def run_with_source(
    work: Callable[[Source], Coroutine[object, object, _Result]], place: Place
) -> _Result:
    """Run `work` on the source of a place. On a terminal, a note names the place.

    Raises:
        typer.BadParameter: a value of an option is not valid.
    """
    if place.dsn is not None:
        return _run_with_database(work, place.dsn)
    return run_with_service(work, place)


def run_with_service(
    work: Callable[[ServiceSource], Coroutine[object, object, _Result]], place: Place
) -> _Result:
    """Run `work` on the service of a place, which must be one; like `run_with_source`."""
    from audit.client.wire import Retries
    from audit.commands.service_url import service_at
    from audit.process.loop import run

    url = place.url
    if url is None:
        raise typer.BadParameter("this command asks a service: give --url or --profile")
    key = place.key()
    if sys.stderr.isatty():
        note(f"service: {place.name}")

    async def with_service() -> _Result:
        retries = Retries(timeout=300, attempt_timeout=120, first_wait=1, needs_contact=True)
        async with service_at(url, key, retries, place.ca_file) as client:
            return await work(ServiceSource(client, url))

    try:
        return run(with_service())
    except (Invalid, Malformed) as problem:
        raise refused_option(problem) from None
    except Unauthenticated as problem:
        if key is not None:
            raise
        hint = "set AUDIT_KEY, or store a key with `audit login`"
        raise Unauthenticated(f"{url} requires an API key: {hint}") from problem


def _run_with_database(
    work: Callable[[Source], Coroutine[object, object, _Result]], dsn: str
) -> _Result:
    from audit.commands.database import run_with_pool
    from audit.commands.options import settings_from
    from audit.history.service import AuditService

    return run_with_pool(
        lambda pool: work(DatabaseSource(AuditService(pool))), settings_from(dsn=dsn)
    )
