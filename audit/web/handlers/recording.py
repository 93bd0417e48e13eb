"""The routes that record and change tasks."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from functools import partial
from typing import Any, Final, TypeVar

from aiohttp import web

from audit.errors import Conflict, PreconditionFailed
from audit.history.parsing import parse_change, parse_lines, parse_tasks
from audit.history.query import NoParams, TaskPath, parse_query
from audit.history.recording import Author
from audit.web.bodies import content_type_of, decode_and_parse, receive
from audit.web.negotiation import match_tags, none_match_tags
from audit.web.positions import POSITION
from audit.web.responses import BytesResponse, json_response, task_response
from audit.web.state import (
    ACCEPT_PATCH,
    BODY_MEMORY,
    IDENTITY,
    REQUEST_ID,
    ROWS,
    SERVICE,
    SETTINGS,
    WRITES,
)
from audit.web.urls import path_and_query_params, query_params

JSON: Final = "application/json"
NDJSON: Final = "application/x-ndjson"

_Result = TypeVar("_Result")


async def record(request: web.Request) -> BytesResponse:
    """Record one task or several.

    Either all tasks of a request are recorded, or none. `task_id` is the idempotency key: a task
    that is sent again with the same content is a duplicate and changes nothing. With other content,
    the request is refused with 409.
    """
    parse_query(NoParams, query_params(request))
    is_lines = content_type_of(request, (JSON, NDJSON)) == NDJSON
    parse = partial(
        parse_lines if is_lines else parse_tasks,
        project_id=request[IDENTITY].project_id,
        limits=request.app[SETTINGS],
    )
    with request.app[BODY_MEMORY].request() as reserve:
        body = await receive(request, reserve)
        batches = await decode_and_parse(request, body, parse)
        reserve(sum(len(batch.text) for batch in batches))
        write = request.app[SERVICE].recording.record_batches(batches, _author(request))
        result = await _complete(request, write)
    request[ROWS] = len(result.ids_as_text)
    response = json_response(result.to_json(), 201 if result.recorded else 200)
    return _at(result.position, response)


async def update(request: web.Request) -> BytesResponse:
    """Change an open task.

    A member that is not sent keeps its value, and `null` clears it. A change without effect writes
    nothing and gets the response 200, even if the task is terminal. So a client can send a change
    again if a response was lost.
    """
    task_id = parse_query(TaskPath, path_and_query_params(request, "task_id")).task_id
    content_type_of(request, ACCEPT_PATCH.split(", "))
    parse = partial(parse_change, limits=request.app[SETTINGS])
    with request.app[BODY_MEMORY].request() as reserve:
        body = await receive(request, reserve)
        change = await decode_and_parse(request, body, parse)
        write = request.app[SERVICE].recording.update(
            task_id,
            change,
            project_id=request[IDENTITY].project_id,
            match=match_tags(request),
            none_match=none_match_tags(request),
            author=_author(request),
        )
        document = await _complete(request, write)
    request[ROWS] = 1
    return _at(document.position, task_response(document))


def _at(position: str | None, response: BytesResponse) -> BytesResponse:
    """Name the position of the write in the response to it."""
    if position is not None:
        response.headers[POSITION] = position
    return response


def _author(request: web.Request) -> Author:
    return Author(request[IDENTITY].actor, request[REQUEST_ID])


async def _complete(request: web.Request, write: Coroutine[Any, Any, _Result]) -> _Result:
    """Return the result of a write.

    If the client leaves, a write that has begun still runs to its end, because it may already be
    committed. A write that waits in the queue is cancelled.
    """
    service, writes = request.app[SERVICE], request.app[WRITES]
    task = asyncio.create_task(write)
    writes.add(task)
    task.add_done_callback(writes.discard)
    task.add_done_callback(_ignore)
    try:
        return await asyncio.shield(task)
    except (Conflict, PreconditionFailed) as problem:
        # A client that reads why must not get a state from before that.
        problem.headers = {**problem.headers, POSITION: await service.positions.read()}
        raise
    except asyncio.CancelledError:
        if service.recording.is_queued(task):
            task.cancel()
        raise
    finally:
        del task  # its exception refers to this frame, and so to the tasks to record


def _ignore(task: asyncio.Task[Any]) -> None:
    """Mark an exception as seen, so that asyncio logs none if the client has left."""
    if not task.cancelled():
        task.exception()
