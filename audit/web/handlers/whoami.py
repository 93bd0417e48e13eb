"""Who sends the request, for the web page and for the command line."""

from __future__ import annotations

from datetime import datetime
from importlib.metadata import version
from typing import Final
from uuid import UUID

from aiohttp import hdrs, web

from audit.access.identity import Scope, Via
from audit.history.query import NoParams, parse_query
from audit.history.task import Output
from audit.web.responses import NO_STORE, BytesResponse
from audit.web.state import IDENTITY, SETTINGS, VIA
from audit.web.urls import query_params

_VERSION: Final = version("task-audit")
_HEADERS: Final = {**NO_STORE, hdrs.CONTENT_TYPE: "application/json"}


class Caller(Output):
    """Who sends a request, and what the service is."""

    name: str | None
    """The name of the API key, or the subject of the token. null if the service requires none."""
    scopes: list[Scope]
    """What the caller may do."""
    project_id: UUID | None
    """The only project that the caller can read and record; null means all projects."""
    expires_at: datetime | None
    """When the key or token expires; null means never."""
    via: Via
    """How the request shows who sends it: by a key, by a token, by the session of the web page, or
    by nothing because the service requires no key."""
    version: str
    """The version of the service."""
    trace_url: str | None
    """The URL of a trace, with `{trace_id}` in place of its id; null if none is configured."""


async def whoami(request: web.Request) -> BytesResponse:
    """Get the name and the scopes of the API key that the request sends.

    If the service requires an API key, the response to a request without a valid one is 401.
    """
    parse_query(NoParams, query_params(request))
    identity = request[IDENTITY]
    caller = Caller(
        name=identity.actor,
        scopes=sorted(identity.scopes),
        project_id=identity.project_id,
        expires_at=identity.expires_at,
        via=request[VIA],
        version=_VERSION,
        trace_url=request.app[SETTINGS].trace_url,
    )
    return BytesResponse(caller.model_dump_json().encode(), _HEADERS)
