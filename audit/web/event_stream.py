"""A response of Server-Sent Events (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

from aiohttp import hdrs, web
from aiohttp.abc import AbstractStreamWriter

from audit.web.responses import NO_STORE

#: How long a client may take to make room for the next events. It is then disconnected, and comes
#: back with its position.
_SEND_SECONDS: Final = 120
_HEADERS: Final[dict[str, str]] = {
    **NO_STORE,
    hdrs.CONTENT_TYPE: "text/event-stream",
    # nginx and other proxies then pass on each event at once.
    "X-Accel-Buffering": "no",
}


class EventStream(web.StreamResponse):
    """Sends events while a generator yields them, and closes the connection after the last one.

    The handler returns it before anything is sent. So the pipeline adds its headers, as it does to
    any other response. Each event waits until the client has read those before, so that a client
    that does not read takes no more memory than one portion of events.
    """

    def __init__(self, events: AsyncGenerator[bytes, None]) -> None:
        """`events` yields whole events. It is not started for a HEAD request."""
        super().__init__(headers=_HEADERS)
        self._events = events
        self.force_close()

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Send the head, and then events until the last one, or until the client leaves."""
        writer = await super().prepare(request)
        if writer is None or request.method == hdrs.METH_HEAD:
            return writer
        _allow_slow_reader(request)
        async with aclosing(self._events) as events:
            async for event in events:
                await writer.write(event)
                await writer.drain()
        return writer


def _allow_slow_reader(request: web.BaseRequest) -> None:
    """Give the client more time to read than for other responses, but notice if it vanishes.

    A host that vanishes confirms nothing. Without TCP_USER_TIMEOUT, the kernel would try for a
    quarter of an hour, and keep the events.
    """
    if hasattr(request.protocol, "answer_seconds"):
        request.protocol.answer_seconds = _SEND_SECONDS
    transport = request.transport
    connected = None if transport is None else transport.get_extra_info("socket")
    option = getattr(socket, "TCP_USER_TIMEOUT", None)
    if connected is not None and option is not None and connected.family != socket.AF_UNIX:
        connected.setsockopt(socket.IPPROTO_TCP, option, 1000 * _SEND_SECONDS)


def event_bytes(name: str, data: str, position: int | None = None) -> bytes:
    """Return an event. Its data is JSON text without line breaks; its id is a position."""
    identity = "" if position is None else f"id: {position}\n"
    return f"event: {name}\n{identity}data: {data}\n\n".encode()
