"""Limits of each request: its time, and the responses that the client has not read yet."""

from __future__ import annotations

from aiohttp import web
from aiohttp.typedefs import Handler

from audit.deadlines import DeadlineExceeded
from audit.errors import TimedOut
from audit.web.state import DEADLINE


def in_time(handler: Handler) -> Handler:
    """Cancel a request that takes longer than `request_timeout_seconds`."""

    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            return await request.app[DEADLINE].run(handler(request))
        except DeadlineExceeded as exceeded:
            raise TimedOut(f"the request took over {exceeded.seconds:g} seconds") from None

    return handle


def in_turn(handler: Handler) -> Handler:
    """Wait until the client has read its previous responses."""

    async def handle(request: web.Request) -> web.StreamResponse:
        if request.protocol.writing_paused:
            await request.writer.drain()
        return await handler(request)

    return handle
