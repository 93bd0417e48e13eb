"""The objects that the application and each request carry, by key."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from audit.access.identity import Identity, Via
from audit.deadlines import Deadline
from audit.history.answers import Answers
from audit.history.exports import Exports
from audit.history.service import AuditService
from audit.settings import Settings
from audit.telemetry.metrics import Metrics
from audit.web.buffers import BodyMemory

if TYPE_CHECKING:
    from audit.postgres.pool import Pool

#: The content types of a change.
ACCEPT_PATCH: Final = "application/json, application/merge-patch+json"

# --- of the application ---------------------------------------------------------------------------

ANSWERS: Final = web.AppKey("answers", Answers)
#: Limits the memory for the bodies of all requests.
BODY_MEMORY: Final = web.AppKey("body_memory", BodyMemory)
#: The time limit of a request, and of the arrival of a body.
DEADLINE: Final = web.AppKey("deadline", Deadline)
#: Set when the process is about to end. Each response then closes its connection.
DRAINING: Final = web.AppKey("draining", asyncio.Event)
EXPORTS: Final = web.AppKey("exports", Exports)
METRICS: Final = web.AppKey("metrics", Metrics)
#: Returns the OpenAPI document as JSON. It is made for the first request.
OPENAPI: Final[web.AppKey[Callable[[], bytes]]] = web.AppKey("openapi")
#: Parses large bodies, one at a time.
PARSER: Final = web.AppKey("parser", ThreadPoolExecutor)
POOL: Final[web.AppKey[Pool]] = web.AppKey("pool")
SERVICE: Final = web.AppKey("service", AuditService)
SETTINGS: Final = web.AppKey("settings", Settings)
#: Writes that have begun. They run to their end even if their client leaves.
WRITES: Final = web.AppKey("writes", set[asyncio.Task[Any]])

# --- of a request ---------------------------------------------------------------------------------

IDENTITY: Final = web.RequestKey("identity", Identity)
#: Why the request was refused; for the log.
REASON: Final = web.RequestKey("reason", str)
REQUEST_ID: Final = web.RequestKey("request_id", str)
#: The number of tasks in the response; for the log.
ROWS: Final = web.RequestKey("rows", int)
#: How the identity was shown.
VIA: Final = web.RequestKey("via", Via)
