"""All routes of the service in one table.

`audit.web.app` serves these routes, and `audit.web.openapi` describes them. The summary and the
description of a route are the docstring of its handler.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from aiohttp.typedefs import Handler
from pydantic import BaseModel

from audit import errors
from audit.access.identity import Scope
from audit.errors import Problem
from audit.history.events import HistoryBody
from audit.history.export_query import ExportQuery, ExportsQuery, Manifest, ManifestPage
from audit.history.feed_body import ChangesBody
from audit.history.feed_query import ChangesQuery, FeedQuery
from audit.history.query import AuditQuery, FailuresQuery, HistoryQuery, NoParams
from audit.history.statistics_body import Durations, Facets, Histogram
from audit.history.statistics_query import DurationsQuery, FacetsQuery, HistogramQuery
from audit.history.task import NewTask, RecordedBody, Task, TaskChange, TaskPageBody
from audit.web.handlers import (
    asking,
    docs,
    exports,
    feed,
    health,
    page,
    recording,
    session,
    statistics,
    whoami,
)
from audit.web.handlers.recording import JSON, NDJSON
from audit.web.state import ACCEPT_PATCH

_API: Final = "/api/v1/audit"


@dataclass(frozen=True, slots=True)
class Content:
    """A body in the OpenAPI document."""

    schema: type[BaseModel] | dict[str, Any]
    examples: tuple[str, ...]
    """Names of bodies in `examples.json`."""
    media_type: str = JSON


@dataclass(frozen=True, slots=True)
class Response:
    """A successful response in the OpenAPI document."""

    description: str
    content: Content | tuple[Content, ...] = ()
    """The body; several if the client chooses its media type."""
    headers: tuple[str, ...] = ()
    links: Mapping[str, Any] = field(default_factory=dict)

    @property
    def contents(self) -> tuple[Content, ...]:
        """The bodies, one for each media type."""
        return self.content if isinstance(self.content, tuple) else (self.content,)


@dataclass(frozen=True, slots=True)
class Route:
    """A method and a path, with their handler."""

    method: str
    path: str
    handler: Handler
    scope: Scope | None = None
    """The scope that the request needs; None: the route is open to everyone."""
    problems: tuple[type[Problem], ...] = ()
    responses: Mapping[int, Response] = field(default_factory=dict)
    """By status. A route without responses is not part of the OpenAPI document."""
    query: type[NoParams] | None = None
    """The model of the parameters in the query, and maybe in the path."""
    headers: tuple[str, ...] = ()
    """The names of optional request headers, without that of `all_headers`."""
    body: tuple[Content, ...] = ()
    waits: bool = False
    """Whether the handler may wait for changes, for longer than the time limit of a request."""
    any_scope: bool = False
    """Whether the request needs an API key whose scope does not matter."""

    @property
    def all_headers(self) -> tuple[str, ...]:
        """The names of optional request headers."""
        of_reads = ("Audit-Position-At-Least",) if self.reads else ()
        return (*self.headers, *of_reads)

    @property
    def reads(self) -> bool:
        """Whether it responds with what is recorded, and so waits for positions."""
        return errors.UnknownPosition in self.problems

    @property
    def needs_key(self) -> bool:
        """Whether the request needs an API key, once the service has any."""
        return self.scope is not None or self.any_scope

    @property
    def allows_session(self) -> bool:
        """Whether the session of the web page is accepted instead of a key in `Authorization`."""
        return self.method == "GET" and self.path.startswith(f"{_API}/")


_READING: Final = (
    errors.Malformed,
    errors.Unauthenticated,
    errors.Forbidden,
    errors.UnknownPosition,
    errors.UrlTooLong,
    errors.Invalid,
    errors.TooManyRequests,
    errors.HeadersTooLarge,
    errors.Problem,
    errors.Unavailable,
    errors.TimedOut,
)
_COUNTING: Final = tuple(errors.TooMany if kind is errors.Invalid else kind for kind in _READING)
_FOLLOWING: Final = tuple(
    errors.TooManyFeeds if kind is errors.Unavailable else kind for kind in _READING
)
_OF_WRITES: Final[Mapping[type[Problem], type[Problem]]] = {
    errors.UnknownPosition: errors.Conflict,
    errors.Unavailable: errors.ReadOnly,
}
_RECORDING: Final = (
    *(_OF_WRITES.get(kind, kind) for kind in _READING),
    errors.BodyTooSlow,
    errors.BodyTooLarge,
    errors.UnsupportedMedia,
)
_ONE_TASK: Final = (errors.TaskNotFound, errors.PreconditionFailed)
_METRICS: Final = (
    errors.Unauthenticated,
    errors.Forbidden,
    errors.TooManyRequests,
    errors.Problem,
    errors.Unavailable,
)
_WHOAMI: Final = (*_METRICS, errors.Malformed, errors.Invalid, errors.HeadersTooLarge)
_SESSION: Final = (
    *_WHOAMI,
    errors.BodyTooSlow,
    errors.BodyTooLarge,
    errors.UnsupportedMedia,
    errors.TimedOut,
)

_CACHING: Final = ("ETag", "Cache-Control", "Vary", "Feed-Position")
_PAGE: Final = {
    200: Response(
        "A page of tasks",
        Content(TaskPageBody, ("first_page", "last_page", "no_match")),
        (*_CACHING, "Link", "X-Total-Count"),
    ),
    304: Response("The page with one of the sent ETags is still current", headers=_CACHING),
}
_TASK: Final = Content(Task, ("task",))
_NEW_TASKS: Final = ("one", "several")
_TEXT: Final = {"type": "string"}
_ROLE: Final = {"enum": ["primary", "standby", "read-only"]}
#: It has no type: some tools validate the whole text, and some each event as an object.
_EVENTS: Final = {"description": "Events. The `data` of a `change` is a FeedChange."}


def _status(value: str, **others: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"status": {"const": value}, **others},
        "required": ["status", *others],
    }


def _statistics(description: str, content: Content) -> dict[int, Response]:
    return {
        200: Response(description, content, _CACHING),
        304: Response("The response with one of the sent ETags is still current", headers=_CACHING),
    }


def _of_first_task(operation: str, description: str) -> dict[str, Any]:
    return {
        "operationId": operation,
        "parameters": {"task_id": "$response.body#/task_ids/0"},
        "description": description,
    }


ROUTES: Final = (
    Route(
        "GET", f"{_API}/failures", asking.get_failures, Scope.READ, _READING, _PAGE,
        query=FailuresQuery, headers=("If-None-Match",),
    ),
    Route(
        "GET", f"{_API}/by-service/{{service_name}}", asking.get_by_service, Scope.READ, _READING,
        _PAGE, query=AuditQuery, headers=("If-None-Match",),
    ),
    Route(
        "GET", f"{_API}/query", asking.audit_query, Scope.READ, _READING, _PAGE,
        query=AuditQuery, headers=("If-None-Match",),
    ),
    Route(
        "GET", f"{_API}/statistics/histogram", statistics.get_histogram, Scope.READ, _COUNTING,
        _statistics("The histogram", Content(Histogram, ("histogram",))),
        query=HistogramQuery, headers=("If-None-Match",),
    ),
    Route(
        "GET", f"{_API}/statistics/facets", statistics.get_facets, Scope.READ, _READING,
        _statistics("The facets", Content(Facets, ("facets",))),
        query=FacetsQuery, headers=("If-None-Match",),
    ),
    Route(
        "GET", f"{_API}/statistics/durations", statistics.get_durations, Scope.READ, _COUNTING,
        _statistics("The durations", Content(Durations, ("durations",))),
        query=DurationsQuery, headers=("If-None-Match",),
    ),
    Route(
        "GET", f"{_API}/changes", feed.get_changes, Scope.READ,
        (*_FOLLOWING, errors.PositionGone),
        {200: Response("The next changes", Content(ChangesBody, ("changes", "no_change")))},
        query=ChangesQuery, waits=True,
    ),
    Route(
        "GET", f"{_API}/feed", feed.get_feed, Scope.READ, _FOLLOWING,
        {200: Response("The stream", Content(_EVENTS, ("stream",), "text/event-stream"))},
        query=FeedQuery, headers=("Last-Event-ID",), waits=True,
    ),
    Route(
        "GET", f"{_API}/export", exports.export_tasks, Scope.READ, _READING,
        {
            200: Response(
                "The file",
                (
                    Content(
                        {**_TEXT, "description": "One Task per line."}, ("task",), NDJSON,
                    ),
                    Content(_TEXT, ("export_csv",), exports.CSV),
                ),
                ("Content-Disposition", "X-Export-ID", "X-Since", "X-Snapshot", "X-Total"),
            ),
        },
        query=ExportQuery,
    ),
    Route(
        "GET", f"{_API}/exports/{{export_id}}", exports.get_export,
        problems=(*_READING, errors.ExportNotFound), any_scope=True,
        responses={200: Response("The manifest", Content(Manifest, ("manifest",)))},
    ),
    Route(
        "GET", f"{_API}/exports", exports.list_exports, Scope.ADMIN, _READING,
        {200: Response("A page of manifests", Content(ManifestPage, ("manifests",)))},
        query=ExportsQuery,
    ),
    Route(
        "POST", f"{_API}/tasks", recording.record, Scope.RECORD, _RECORDING,
        {
            200: Response(
                "All tasks were already recorded with the same content",
                Content(RecordedBody, ("duplicates",)),
                ("Audit-Position",),
            ),
            201: Response(
                "The tasks are recorded and durable",
                Content(RecordedBody, ("recorded",)),
                ("Audit-Position",),
                links={
                    "first_task": _of_first_task("get_task", "Gets the first task"),
                    "change_of_first_task": _of_first_task("update", "Changes the first task"),
                },
            ),
        },
        body=(
            Content(NewTask, _NEW_TASKS),
            Content(
                {**_TEXT, "description": "One NewTask per line, up to the size limit of a body."},
                _NEW_TASKS, NDJSON,
            ),
        ),
    ),
    Route(
        "GET", f"{_API}/tasks/{{task_id}}", asking.get_task, Scope.READ, (*_READING, *_ONE_TASK),
        {
            200: Response("The task", _TASK, ("ETag",)),
            304: Response("The task with the sent ETag is still current", headers=("ETag",)),
        },
        headers=("If-None-Match",),
    ),
    Route(
        "GET", f"{_API}/tasks/{{task_id}}/history", asking.get_history, Scope.READ,
        (*_READING, *_ONE_TASK),
        {
            200: Response(
                "A page of events", Content(HistoryBody, ("history",)), ("ETag", "Link")
            ),
            304: Response("The page with the sent ETag is still current", headers=("ETag",)),
        },
        query=HistoryQuery, headers=("If-None-Match",),
    ),
    Route(
        "PATCH", f"{_API}/tasks/{{task_id}}", recording.update, Scope.RECORD,
        (*_RECORDING, *_ONE_TASK),
        {200: Response("The task after the change", _TASK, ("ETag", "Audit-Position"))},
        headers=("If-Match",),
        body=tuple(
            Content(TaskChange, ("failed",), each) for each in ACCEPT_PATCH.split(", ")
        ),
    ),
    Route(
        "GET", f"{_API}/whoami", whoami.whoami,
        problems=_WHOAMI, any_scope=True, query=NoParams,
        responses={200: Response("The caller", Content(whoami.Caller, ("caller",)))},
    ),
    Route(
        "POST", "/session", session.open_session,
        problems=_SESSION,
        responses={204: Response("The session is open", headers=("Set-Cookie",))},
        body=(Content(session.NewSession, ("session",)),),
    ),
    Route(
        "DELETE", "/session", session.close_session,
        problems=(
            errors.Malformed, errors.Forbidden, errors.Invalid, errors.HeadersTooLarge,
            errors.Problem,
        ),
        responses={204: Response("The session is closed", headers=("Set-Cookie",))},
    ),
    Route(
        "GET", "/healthz", health.healthz,
        responses={200: Response("The process is running", Content(_status("ok"), ("ok",)))},
    ),
    Route(
        "GET", "/readyz", health.readyz, None,
        (errors.Problem, errors.Unavailable, errors.TimedOut),
        {200: Response("The service is ready", Content(_status("ready", role=_ROLE), ("ready",)))},
    ),
    Route(
        "GET", "/metrics", health.metrics, Scope.ADMIN, _METRICS,
        {200: Response("All metrics", Content(_TEXT, ("metrics",), "text/plain"))},
    ),
    Route(
        "GET", "/openapi.json", docs.openapi_json,
        responses={
            200: Response("An OpenAPI 3.1 document", Content({"type": "object"}, ("beginning",)))
        },
    ),
    Route(
        "GET", "/docs", docs.docs,
        responses={200: Response("The page", Content(_TEXT, ("html",), "text/html"))},
    ),
    Route("GET", "/docs/", docs.redirect_to_docs),
    Route("GET", "/docs/{asset}", docs.asset),
    Route("GET", "/", page.redirect_to_page),
    Route("GET", "/tasks", page.tasks_page),
    Route("GET", "/tasks/{task_id}", page.task_page),
    Route("GET", "/assets/{digest}/{file}", page.page_asset),
)  # fmt: skip
