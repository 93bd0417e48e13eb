"""The routes that read tasks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, TypeVar

from aiohttp import hdrs, web
from multidict import istr

from audit.history.answers import Answer, Question
from audit.history.query import (
    AuditQuery,
    FailuresQuery,
    HistoryQuery,
    MemberFilter,
    TaskPath,
    TaskQuery,
    parse_query,
)
from audit.web.negotiation import accepts_gzip, not_modified, require_match
from audit.web.responses import TASK_HEADERS, BytesResponse, history_response, task_response
from audit.web.state import ANSWERS, IDENTITY, ROWS, SERVICE
from audit.web.urls import links, path_and_query_params, query_params

#: Clients may store a response, but must ask each time whether it is still current.
_HEADERS: Final[dict[str, str]] = {
    hdrs.CACHE_CONTROL: "private, no-cache",
    hdrs.VARY: "Accept-Encoding, Authorization, Cookie",
}
Filter = TypeVar("Filter", bound=MemberFilter)
_FEED_POSITION: Final = istr("Feed-Position")
_TOTAL_COUNT: Final = istr("X-Total-Count")
#: A body up to this size fits in one packet, and is not compressed.
_SHORT_BYTES: Final = 1024


def get_failures(request: web.Request) -> Awaitable[BytesResponse]:
    """List the tasks that failed.

    Newest first. By default, only the tasks created in the last 7 days.
    """
    return _list(request, FailuresQuery)


def get_by_service(request: web.Request) -> Awaitable[BytesResponse]:
    """List the tasks that touched a service.

    Newest first. If `service` is given as well, a task must have touched all of these services.
    """
    return _list(request, AuditQuery, in_path="service")


def audit_query(request: web.Request) -> Awaitable[BytesResponse]:
    """List the tasks that match all filters.

    Newest first. Without a filter, all tasks match.
    """
    return _list(request, AuditQuery)


def _list(
    request: web.Request, model: type[TaskQuery], in_path: str | None = None
) -> Awaitable[BytesResponse]:
    """Answer a list request: 304, or a page from the cache or the database."""

    def ask() -> Question:
        query = parse(request, model, in_path)
        return Question(query, partial(request.app[SERVICE].reading.list_tasks, query))

    return answer(request, ask, _page_headers)


async def answer(
    request: web.Request,
    ask: Callable[[], Question],
    further_headers: Callable[[web.Request, Answer], dict[str, str]] = lambda *_: {},
) -> BytesResponse:
    """Answer a question: 304, or the answer from the cache or the database.

    `ask` validates the request, if the cache does not know its question.
    """
    answers = request.app[ANSWERS]
    key = _cache_key(request)
    question = answers.known_question(key) or ask()
    version = await answers.current_version()
    answer = await answers.under(version, key, question)
    response = not_modified(request, answer.etag, _HEADERS)
    if response is None:
        response = await _whole(request, key, answer, further_headers)
    # An answer from the cache is what the query returns in this version, and without a cache the
    # query runs after it. So a client that follows the log from here misses no change, and gets few
    # that the answer contains.
    response.headers[_FEED_POSITION] = str(version.log_size)
    return response


async def _whole(
    request: web.Request,
    key: str,
    answer: Answer,
    further_headers: Callable[[web.Request, Answer], dict[str, str]],
) -> BytesResponse:
    """Return the answer with its body, compressed if the client accepts that."""
    gzip_body = None
    if len(answer.body) > _SHORT_BYTES and accepts_gzip(request):
        gzip_body = await request.app[ANSWERS].gzip(key, answer)
    request[ROWS] = answer.rows
    if answer.headers is None:
        answer.headers = {
            **_HEADERS,
            hdrs.CONTENT_TYPE: "application/json",
            hdrs.ETAG: answer.etag,
            **further_headers(request, answer),
        }
    if gzip_body is None:
        return BytesResponse(answer.body, answer.headers)
    return BytesResponse(gzip_body, {**answer.headers, hdrs.CONTENT_ENCODING: "gzip"})


def _cache_key(request: web.Request) -> str:
    """Return everything that the response depends on, besides the tasks and the clock."""
    project_id = request[IDENTITY].project_id
    return request.raw_path if project_id is None else f"{project_id} {request.raw_path}"


def parse(request: web.Request, model: type[Filter], in_path: str | None = None) -> Filter:
    """Return the validated query of a URL, limited to the project of the key.

    Raises:
        Malformed, Invalid: the URL or a parameter is wrong.
        Forbidden: the key is bound to another project.
    """
    identity = request[IDENTITY]
    params = path_and_query_params(request, in_path) if in_path else query_params(request)
    if identity.project_id is not None:
        params.setdefault("project_id", [str(identity.project_id)])
    query = parse_query(model, params)
    identity.require_project(query.project_id)
    return query


def _page_headers(request: web.Request, answer: Answer) -> dict[str, str]:
    headers: dict[str, str] = {}
    if answer.total is not None:
        headers[_TOTAL_COUNT] = str(answer.total)
    if link := links(request, answer.next_cursor):
        headers[hdrs.LINK] = link
    return headers


async def get_task(request: web.Request) -> BytesResponse:
    """Get one task with all its members."""
    query = parse_query(TaskPath, path_and_query_params(request, "task_id"))
    document = await request.app[SERVICE].get_task(
        query.task_id, project_id=request[IDENTITY].project_id
    )
    require_match(request, document.etag)
    if unchanged := not_modified(request, document.etag, TASK_HEADERS):
        return unchanged
    request[ROWS] = 1
    return task_response(document)


async def get_history(request: web.Request) -> BytesResponse:
    """List the events of a task: who changed what, and when.

    Oldest first, including every write that was confirmed before the request. A task that was
    recorded before the service kept a log has no events until it is changed or imported.
    """
    query = parse_query(HistoryQuery, path_and_query_params(request, "task_id", after="/history"))
    page = await request.app[SERVICE].log.get_history(
        query, project_id=request[IDENTITY].project_id
    )
    require_match(request, page.etag)
    if unchanged := not_modified(request, page.etag, TASK_HEADERS):
        return unchanged
    request[ROWS] = page.rows
    return history_response(page, links(request, page.next_cursor))
