"""The routes that record."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Collection, Coroutine
from typing import Any, TypeVar

from aiohttp import web

from audit.errors import BodyTooLarge, BodyTooSlow, Invalid, Malformed, UnsupportedMedia
from audit.handlers import ACCEPT_PATCH, BODY_LIMIT, IDENTITY, ROWS, SERVICE, SETTINGS
from audit.handlers.reading import (
    match_of,
    none_match_of,
    query_params,
    task_id_of,
    task_response,
)
from audit.limits import Late
from audit.models import NoParams, TaskBatch, parse_change, parse_lines, parse_query, parse_tasks
from audit.responses import Whole, json_response
from audit.service import AuditService

JSON = "application/json"
NDJSON = "application/x-ndjson"
_CODINGS = ("identity", "gzip", "deflate")
_LINES_IN_BATCH = 1000
_writing: set[asyncio.Task[Any]] = set()

_Result = TypeVar("_Result")


async def record(request: web.Request) -> Whole:
    """Record a task, an array of tasks, or NDJSON: all of it, or nothing."""
    parse_query(NoParams, query_params(request))
    if _content_type(request, (JSON, NDJSON)) == NDJSON:
        batches = await _in_time(request, _read_lines(request))
    else:
        body = await _in_time(request, _read(request))
        batches = [parse_tasks(body, request[IDENTITY].project_id)]
    service = request.app[SERVICE]
    result = await _to_its_end(service, service.record_batches(batches))
    request[ROWS] = len(result.ids_as_text)
    return json_response(result.to_json(), 201 if result.recorded else 200)


async def update(request: web.Request) -> Whole:
    """Move an open task on and fill in what is known."""
    task_id = task_id_of(request)
    _content_type(request, ACCEPT_PATCH.split(", "))
    change = parse_change(await _in_time(request, _read(request)))
    project_id = request[IDENTITY].project_id
    service = request.app[SERVICE]
    document = await _to_its_end(
        service,
        service.update_judged(
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
        return await request.app[BODY_LIMIT].run(reading)
    except Late as late:
        raise BodyTooSlow(f"the body did not arrive within {late.seconds:g} seconds") from None


async def _to_its_end(service: AuditService, write: Coroutine[Any, Any, _Result]) -> _Result:
    """Let a write that has begun run to its end if its client leaves: it may be committed."""
    writing = asyncio.create_task(write)
    _writing.add(writing)
    writing.add_done_callback(_written)
    try:
        return await asyncio.shield(writing)
    except asyncio.CancelledError:
        if service.is_queued(writing):
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
    coding = request.headers.get("Content-Encoding", "identity")
    if coding.lower() not in _CODINGS:
        raise UnsupportedMedia(f"the content encoding is {coding}; send {' or '.join(_CODINGS)}")
    return request.content_type


async def _read(request: web.Request) -> bytes:
    return b"".join([chunk async for chunk in _chunks(request)])


async def _read_lines(request: web.Request) -> list[TaskBatch]:
    """Judge NDJSON while it arrives; lines of white space are passed over."""
    project_id = request[IDENTITY].project_id
    batches: list[TaskBatch] = []
    lines: list[tuple[int, bytes]] = []
    number = 1
    pieces: list[bytes] = []
    async for chunk in _chunks(request):
        first, *others = chunk.split(b"\n")
        pieces.append(first)
        for other in others:
            _add_line(lines, number, pieces)
            number += 1
            pieces = [other]
        while len(lines) >= _LINES_IN_BATCH:
            batches.append(parse_lines(lines[:_LINES_IN_BATCH], project_id))
            del lines[:_LINES_IN_BATCH]
    _add_line(lines, number, pieces)
    if lines:
        batches.append(parse_lines(lines, project_id))
    if not batches:
        raise Invalid("the body is empty", errors=[{"field": "", "detail": "must hold a task"}])
    return batches


def _add_line(lines: list[tuple[int, bytes]], number: int, pieces: list[bytes]) -> None:
    line = b"".join(pieces)
    if line.strip():
        lines.append((number, line))


async def _chunks(request: web.Request) -> AsyncIterator[bytes]:
    """Yield the body as it arrives, within the limit of its size."""
    settings = request.app[SETTINGS]
    left = settings.max_body_bytes
    too_large = BodyTooLarge(f"the body is over {settings.max_body_bytes} bytes; send it in parts")
    if (request.content_length or 0) > left:
        raise too_large
    try:
        async for chunk in request.content.iter_any():
            left -= len(chunk)
            if left < 0:
                raise too_large
            yield chunk
    except web.RequestPayloadError:
        raise Malformed("the body breaks off, or is not what its Content-Encoding says") from None
