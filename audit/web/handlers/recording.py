"""The routes that record."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterator
from functools import partial
from typing import Any, TypeVar

from aiohttp import web

from audit.deadlines import DeadlineExceeded
from audit.errors import BodyTooSlow, Malformed, TimedOut, UnsupportedMedia
from audit.history.parsing import parse_change, parse_lines, parse_tasks
from audit.history.query import NoParams, parse_query
from audit.history.service import AuditService
from audit.web.content_coding import coding_of, decode, too_large
from audit.web.handlers.asking import (
    match_of,
    none_match_of,
    query_params,
    task_id_of,
    task_response,
)
from audit.web.responses import BytesResponse, json_response
from audit.web.state import (
    ACCEPT_PATCH,
    BODY,
    DEADLINE,
    IDENTITY,
    PARSER,
    ROWS,
    SERVICE,
    SETTINGS,
)

JSON = "application/json"
NDJSON = "application/x-ndjson"
#: What is parsed in a few milliseconds.
_SMALL_BYTES = 64 * 1024
_SMALL_LINES = 1000
_writing: set[asyncio.Task[Any]] = set()

_Result = TypeVar("_Result")


async def record(request: web.Request) -> BytesResponse:
    """Record one task or several.

    Either all tasks of a request are recorded, or none. `task_id` is the idempotency key: a task
    that is sent again with the same content is a duplicate and changes nothing. With other content,
    the request is refused with 409.
    """
    parse_query(NoParams, query_params(request))
    is_lines = _content_type(request, (JSON, NDJSON)) == NDJSON
    parse = partial(
        parse_lines if is_lines else parse_tasks,
        project_id=request[IDENTITY].project_id,
        settings=request.app[SETTINGS],
    )
    batches = await _parsed(request, await _in_time(request, _read(request)), parse)
    request[BODY].add(sum(len(batch.text) for batch in batches))
    service = request.app[SERVICE]
    result = await _to_its_end(service, service.recording.record_batches(batches))
    request[ROWS] = len(result.ids_as_text)
    return json_response(result.to_json(), 201 if result.recorded else 200)


async def update(request: web.Request) -> BytesResponse:
    """Change an open task.

    A member that is not sent keeps its value, and `null` clears it. A change without effect writes
    nothing and gets the response 200, even if the task is terminal. So a client can send a change
    again if a response was lost.
    """
    task_id = task_id_of(request)
    _content_type(request, ACCEPT_PATCH.split(", "))
    parse = partial(parse_change, settings=request.app[SETTINGS])
    change = await _parsed(request, await _in_time(request, _read(request)), parse)
    project_id = request[IDENTITY].project_id
    service = request.app[SERVICE]
    document = await _to_its_end(
        service,
        service.recording.update(
            task_id,
            change,
            project_id=project_id,
            match=match_of(request),
            none_match=none_match_of(request),
        ),
    )
    request[ROWS] = 1
    return task_response(document)


async def _in_time(request: web.Request, reading: Awaitable[_Result]) -> _Result:
    """Receive a body within the time of a request."""
    try:
        return await request.app[DEADLINE].run(reading)
    except DeadlineExceeded as exceeded:
        raise BodyTooSlow(f"the body did not arrive within {exceeded.seconds:g} seconds") from None


async def _to_its_end(service: AuditService, write: Coroutine[Any, Any, _Result]) -> _Result:
    """Let a write that has begun run to its end if its client leaves: it may be committed."""
    writing = asyncio.create_task(write)
    _writing.add(writing)
    writing.add_done_callback(_written)
    try:
        return await asyncio.shield(writing)
    except asyncio.CancelledError:
        if service.recording.is_queued(writing):
            writing.cancel()
        raise


def _written(writing: asyncio.Task[Any]) -> None:
    _writing.discard(writing)
    if not writing.cancelled():
        writing.exception()  # whoever still waits for it is told


def _content_type(request: web.Request, allowed: Collection[str]) -> str:
    if request.content_type not in allowed:
        given = request.headers.get("Content-Type", "none")
        accepted = {"Accept-Patch": ACCEPT_PATCH} if request.method == "PATCH" else {}
        raise UnsupportedMedia(
            f"the content type is {given}; send {' or '.join(allowed)}", headers=accepted
        )
    coding_of(request.headers.getall("Content-Encoding", ()))
    return request.content_type


async def _read(request: web.Request) -> bytes:
    """Return the body as it was sent, within the limit of its size."""
    settings = request.app[SETTINGS]
    if (request.content_length or 0) > settings.max_body_bytes:
        raise too_large(settings)
    chunks: list[bytes] = []
    size = 0
    try:
        async for chunk in request.content.iter_any():
            size += len(chunk)
            if size > settings.max_body_bytes:
                raise too_large(settings)
            chunks.append(chunk)
            request[BODY].add(len(chunk))
    except web.RequestPayloadError:
        raise Malformed("the body breaks off") from None
    return b"".join(chunks)


async def _parsed(
    request: web.Request, body: bytes, parse: Callable[[Iterator[bytes]], _Result]
) -> _Result:
    """Parse a body. A large one is parsed in a thread, so that the event loop goes on meanwhile."""
    coding = coding_of(request.headers.getall("Content-Encoding", ()))
    pieces = decode(body, coding, request.app[SETTINGS])
    is_small = len(body) <= _SMALL_BYTES and body.count(b"\n") <= _SMALL_LINES
    if is_small and coding == "identity":
        return parse(pieces)
    abandoned = threading.Event()
    parsing = asyncio.get_running_loop().run_in_executor(
        request.app[PARSER], _without_collections, parse, _unless(abandoned, pieces)
    )
    try:
        return await request.app[DEADLINE].run(parsing)
    except DeadlineExceeded as exceeded:
        raise TimedOut(f"the body was not parsed within {exceeded.seconds:g} seconds") from None
    finally:
        abandoned.set()


def _without_collections(
    parse: Callable[[Iterator[bytes]], _Result], pieces: Iterator[bytes]
) -> _Result:
    """Parse while Python does not look for cycles of objects.

    The values of a task have none. To look through those of a large one would stop the event loop
    for a second.
    """
    if not gc.isenabled():
        return parse(pieces)
    gc.disable()
    try:
        return parse(pieces)
    finally:
        gc.enable()


def _unless(abandoned: threading.Event, pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the pieces; raise _Abandoned once the request that waits for them has ended."""
    for piece in pieces:
        if abandoned.is_set():
            raise _Abandoned
        yield piece


class _Abandoned(Exception):
    """The client has left, or its request ran into a time limit."""
