"""The routes that answer questions."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from http import HTTPStatus
from typing import Final
from urllib.parse import parse_qsl, quote, unquote_to_bytes, urlencode
from uuid import UUID

from aiohttp import hdrs, web
from multidict import istr

from audit.errors import Malformed, PreconditionFailed
from audit.history.answers import Answer
from audit.history.query import AuditQuery, FailuresQuery, TaskPath, TaskQuery, parse_query
from audit.history.task import TaskDocument
from audit.web.responses import BytesResponse, json_response
from audit.web.state import ANSWERS, IDENTITY, ROWS, SERVICE

#: The answer is the client's to keep, and to be asked about each time.
_HEADERS: Final[dict[str, str]] = {
    hdrs.CACHE_CONTROL: "private, no-cache",
    hdrs.VARY: "Accept-Encoding, Authorization",
}
#: Common proxies take 4 KiB of header fields of an answer, all together.
_LONGEST_LINKS: Final = 3000
_TOTAL_COUNT: Final = istr("X-Total-Count")
#: A shorter body goes into one packet as it is.
_SHORT_BYTES: Final = 1024
#: A task's answer is never compressed.
_TASK_HEADERS: Final[dict[str, str]] = {
    hdrs.CACHE_CONTROL: "private, no-cache",
    hdrs.VARY: "Authorization",
}
#: Part of a URL that can be sent again as it came.
_PLAIN_URL = re.compile(r"[A-Za-z0-9&=._~+:/-]*", re.ASCII)
_TAG = re.compile(r'(W/)?("[^"]*")')
_WEIGHT = re.compile(r"\s*q=([01](?:\.\d{0,3})?)\s*", re.ASCII)
_BROKEN_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")


async def get_failures(request: web.Request) -> BytesResponse:
    """List the tasks that failed.

    Newest first. By default, only the tasks created in the last 7 days.
    """
    return await _list(request, FailuresQuery, query_params)


async def get_by_service(request: web.Request) -> BytesResponse:
    """List the tasks that touched a service.

    Newest first. If `service` is given as well, a task must have touched all of these services.
    """
    return await _list(request, AuditQuery, _by_service)


async def audit_query(request: web.Request) -> BytesResponse:
    """List the tasks that match all filters.

    Newest first. Without a filter, all tasks match.
    """
    return await _list(request, AuditQuery, query_params)


def _by_service(request: web.Request) -> dict[str, list[str]]:
    params = query_params(request)
    params["service"] = [_last_segment(request), *params.get("service", [])]
    return params


async def _list(
    request: web.Request,
    model: type[TaskQuery],
    read: Callable[[web.Request], dict[str, list[str]]],
) -> BytesResponse:
    identity = request[IDENTITY]
    project_id = identity.project_id
    question = request.raw_path if project_id is None else f"{project_id} {request.raw_path}"

    def parse() -> TaskQuery:
        query = parse_query(model, read(request))
        return query.model_copy(update={"project_id": identity.bind(query.project_id)})

    answer = await request.app[ANSWERS].find(question, parse)
    if answer.etag and _is_held(request, answer.etag):
        return BytesResponse(None, {**_HEADERS, hdrs.ETAG: answer.etag}, HTTPStatus.NOT_MODIFIED)
    body = await answer.body()
    if answer.rows is not None:
        request[ROWS] = answer.rows
    if answer.head is None:
        answer.head = _head(request, answer)
    headers = answer.head.copy()
    if len(body) > _SHORT_BYTES and _takes_gzip(request.headers.get(hdrs.ACCEPT_ENCODING, "")):
        body = await answer.gzip_body()
        headers[hdrs.CONTENT_ENCODING] = "gzip"
    return BytesResponse(body, headers)


def _head(request: web.Request, answer: Answer) -> dict[str, str]:
    """Return the header fields of every response with this page."""
    head: dict[str, str] = {**_HEADERS, hdrs.CONTENT_TYPE: "application/json"}
    if answer.etag:
        head[hdrs.ETAG] = answer.etag
    if answer.total is not None:
        head[_TOTAL_COUNT] = str(answer.total)
    links = _links(request, answer.next_cursor)
    if len(links) <= _LONGEST_LINKS:
        head[hdrs.LINK] = links
    return head


def _links(request: web.Request, next_cursor: str | None) -> str:
    """Lead to the first page and to the next one (RFC 8288), relative to this one.

    A proxy may serve the service under another name, scheme or prefix.
    """
    path, _, query = request.raw_path.partition("?")
    page = "./" + path.rpartition("/")[2]
    if _has_place(query) or not _PLAIN_URL.fullmatch(page + query):
        page = "./" + quote(_last_segment(request), safe="")
        filters = [
            (name, value)
            for name, values in query_params(request).items()
            for value in values
            if name not in ("cursor", "offset")
        ]
        query = urlencode(filters)
    links = f'<{page}?{query}>; rel="first"' if query else f'<{page}>; rel="first"'
    if next_cursor is not None:
        joined = f"{query}&" if query else ""
        links += f', <{page}?{joined}cursor={next_cursor}>; rel="next"'
    return links


def _has_place(query: str) -> bool:
    """Whether the URL says where the page begins, which another page does not repeat."""
    return "cursor=" in query or "offset=" in query


def _is_held(request: web.Request, etag: str) -> bool:
    """Whether the client has the answer with this ETag (RFC 9110, 13.1.2)."""
    held = request.headers.getall(hdrs.IF_NONE_MATCH, None)
    if not held:
        return False
    return held[0] == etag or _has(_tags(held), etag.removeprefix("W/"))


def _has(tags: list[str], etag: str) -> bool:
    return "*" in tags or etag in tags


def _tags(given: list[str], *, strong: bool = False) -> list[str]:
    """The entity tags of a header, without their `W/`; only the strong ones, if that is asked."""
    listed = ",".join(given)
    if listed.strip() == "*":
        return ["*"]
    return [tag for weak, tag in _TAG.findall(listed) if not (strong and weak)]


def match_of(request: web.Request) -> list[str] | None:
    """Return the tags of `If-Match` that can match; None without it (RFC 9110, 13.1.1)."""
    given = request.headers.getall(hdrs.IF_MATCH, None)
    return None if given is None else _tags(given, strong=True)


def none_match_of(request: web.Request) -> list[str] | None:
    """Return the tags of `If-None-Match`; None without it."""
    given = request.headers.getall(hdrs.IF_NONE_MATCH, None)
    return None if given is None else _tags(given)


@lru_cache(maxsize=256)
def _takes_gzip(accepted: str) -> bool:
    """Whether an Accept-Encoding allows gzip: by name, or else by `*` (RFC 9110, 12.5.3)."""
    weights: dict[str, float] = {}
    for member in accepted.lower().split(","):
        coding, _, weight = member.partition(";")
        found = _WEIGHT.fullmatch(weight)
        weights[coding.strip()] = float(found[1]) if found else 1
    return weights.get("gzip", weights.get("x-gzip", weights.get("*", 0))) > 0


async def get_task(request: web.Request) -> BytesResponse:
    """Get one task with all its members."""
    document = await request.app[SERVICE].get_task(
        task_id_of(request), project_id=request[IDENTITY].project_id
    )
    match = match_of(request)
    if match is not None and not _has(match, document.etag):
        raise PreconditionFailed(f"the task's ETag is {document.etag}")
    if _is_held(request, document.etag):
        return BytesResponse(
            None, {**_TASK_HEADERS, hdrs.ETAG: document.etag}, HTTPStatus.NOT_MODIFIED
        )
    request[ROWS] = 1
    return task_response(document)


def task_response(document: TaskDocument) -> BytesResponse:
    """Return the answer that shows a task whole, under its entity tag."""
    response = json_response(document.json.encode())
    response.headers.update(_TASK_HEADERS)
    response.headers[hdrs.ETAG] = document.etag
    return response


def task_id_of(request: web.Request) -> UUID:
    """Return the task that the path names."""
    params = query_params(request)
    params["task_id"] = [_last_segment(request), *params.get("task_id", [])]
    return parse_query(TaskPath, params).task_id


def query_params(request: web.Request) -> dict[str, list[str]]:
    """The parameters of the URL, each with all its values.

    Raises:
        Malformed: a percent-encoding is broken, is not UTF-8 or holds a NUL character.
    """
    _, _, query = request.raw_path.partition("?")
    params: dict[str, list[str]] = {}
    for name, value in parse_qsl(_encoded(query), keep_blank_values=True):
        params.setdefault(name, []).append(value)
    return params


def _last_segment(request: web.Request) -> str:
    path, _, _ = request.raw_path.partition("?")
    return unquote_to_bytes(_encoded(path.rpartition("/")[2])).decode()


def _encoded(text: str) -> str:
    """Return part of a URL if what it encodes is text."""
    decoded = unquote_to_bytes(text.encode("utf-8", "surrogateescape"))
    try:
        decoded.decode()
    except UnicodeDecodeError:
        raise Malformed("the URL holds a percent-encoding that is not UTF-8") from None
    if _BROKEN_PERCENT.search(text):
        raise Malformed("the URL has a % that is not followed by two hexadecimal digits")
    if b"\0" in decoded:
        raise Malformed("the URL holds a NUL character")
    return text
