"""The routes that answer questions."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, unquote_to_bytes
from uuid import UUID

from aiohttp import web

from audit.errors import Malformed
from audit.handlers import SERVICE, json_response
from audit.models import (
    AuditQuery,
    FailuresQuery,
    TaskPath,
    TaskQuery,
    parse_query,
)

_BROKEN_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")


async def get_failures(request: web.Request) -> web.Response:
    """The tasks that failed, newest first: by default, those of the last week."""
    return await _list(request, parse_query(FailuresQuery, query_params(request)))


async def get_by_service(request: web.Request) -> web.Response:
    """The tasks that touched one service, newest first."""
    params = query_params(request)
    params["service"] = [_last_segment(request), *params.get("service", [])]
    return await _list(request, parse_query(AuditQuery, params))


async def audit_query(request: web.Request) -> web.Response:
    """The tasks that match every filter given, newest first."""
    return await _list(request, parse_query(AuditQuery, query_params(request)))


async def _list(request: web.Request, query: TaskQuery) -> web.Response:
    page = await request.app[SERVICE].list_tasks(query)
    return json_response(page.to_json())


async def get_task(request: web.Request) -> web.Response:
    """One task whole."""
    document = await request.app[SERVICE].get_task(task_id_of(request))
    return json_response(document.json.encode())


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
        raise Malformed("the URL holds a % that two hexadecimal digits do not follow")
    if b"\0" in decoded:
        raise Malformed("the URL holds a NUL character")
    return text
