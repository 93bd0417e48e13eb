"""HTTP in, a question to the service, HTTP out: one small module for each group of routes."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from aiohttp import web

from audit.access.identity import Identity
from audit.deadlines import Deadline
from audit.history.answers import Answers
from audit.history.service import AuditService
from audit.settings import Settings
from audit.telemetry.metrics import Metrics
from audit.web.buffers import Body

if TYPE_CHECKING:
    from audit.postgres.pool import Pool

#: The content types of a change.
ACCEPT_PATCH: Final = "application/json, application/merge-patch+json"
SERVICE: Final = web.AppKey("service", AuditService)
ANSWERS: Final = web.AppKey("answers", Answers)
IDENTITY: Final = web.RequestKey("identity", Identity)
SETTINGS: Final = web.AppKey("settings", Settings)
METRICS: Final = web.AppKey("metrics", Metrics)
#: What is told of a request in the log, where it is known.
REQUEST_ID: Final = web.RequestKey("request_id", str)
ROWS: Final = web.RequestKey("rows", int)
#: Why it was refused with 401 or 403.
REASON: Final = web.RequestKey("reason", str)
#: The body of the request, as far as it has arrived.
BODY: Final = web.RequestKey("body", Body)
#: How long a client may take to send a body.
BODY_DEADLINE: Final = web.AppKey("body_deadline", Deadline)
#: Set when the process is to end: each answer is the last of its connection.
DRAINING: Final = web.AppKey("draining", asyncio.Event)
#: Parses large bodies, one after the other.
PARSER: Final = web.AppKey("parser", ThreadPoolExecutor)
POOL: Final[web.AppKey[Pool]] = web.AppKey("pool")
