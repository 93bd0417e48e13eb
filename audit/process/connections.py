"""The connections of a worker to its clients: so many, and none for ever."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Final, cast
from weakref import WeakSet

from aiohttp import web

from audit.errors import Unavailable
from audit.web.buffers import Unread
from audit.web.problems import MAX_HEADER_BYTES, MAX_HEADERS, MAX_URL_BYTES, bytes_of

#: So long a client that is refused may take to read why.
_REFUSAL_SECONDS: Final = 1


class Connections:
    """Makes the protocol of each connection; `most` may be open, one more is told 503.

    `refused` is told the status of what is refused before it is read as a request.
    The responses that clients have not read yet take `most_unread_bytes` in memory at most.
    A client that does not take an answer within `answer_seconds` is cut off, and one that sends
    nothing, or only parts of a head, for `idle_seconds`.
    """

    def __init__(
        self,
        server: web.Server,
        refused: Callable[[int], None],
        *,
        most: int,
        answer_seconds: float,
        idle_seconds: float,
        most_unread_bytes: int,
    ) -> None:
        self._server = server
        self._unread = Unread(most_unread_bytes)
        self._refused = refused
        self._most = most
        self._answer_seconds = answer_seconds
        self._idle_seconds = idle_seconds
        # A connection that breaks off before it is made leaves by itself.
        self._open: WeakSet[_Connection] = WeakSet()
        self._left: asyncio.Event | None = None

    def __call__(self) -> asyncio.Protocol:
        """Return what is to serve a new connection."""
        if len(self._open) >= self._most:
            refusal = _Refusal(f"{self._most} connections are open in this process")
            self._refused(refusal.problem.status)
            return refusal
        connection = _Connection(
            self._server,
            loop=asyncio.get_running_loop(),
            access_log=None,
            keepalive_timeout=self._idle_seconds,
            max_line_size=MAX_URL_BYTES,
            max_field_size=MAX_HEADER_BYTES,
            max_headers=MAX_HEADERS,
        )
        connection.answer_seconds = self._answer_seconds
        connection.lost = self._lost
        connection.refused = self._refused
        connection.unread = self._unread
        self._open.add(connection)
        return connection

    def _lost(self, connection: _Connection) -> None:
        self._open.discard(connection)
        if self._left is not None and not self._open:
            self._left.set()

    async def leave(self, seconds: float) -> None:
        """Wait until all are closed, no longer than this."""
        if not self._open:
            return
        self._left = asyncio.Event()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._left.wait(), seconds)


class _Connection(web.RequestHandler):
    __slots__ = ("__weakref__", "_cut", "answer_seconds", "lost", "refused", "unread")

    answer_seconds: float
    lost: Callable[[_Connection], None]
    refused: Callable[[int], None]
    unread: Unread

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self._cut: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        # Writing pauses where the kernel does not take all, and goes on when it has taken all.
        cast("asyncio.Transport", transport).set_write_buffer_limits(high=0)

    def handle_error(self, *given: Any, **more: Any) -> web.StreamResponse:
        response = super().handle_error(*given, **more)
        self.refused(response.status)
        return response

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.transport is not None:
            self._cut = self._loop.call_later(self.answer_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._keep()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._keep()
        self.lost(self)
        super().connection_lost(exc)

    def _keep(self) -> None:
        if self._cut is not None:
            self._cut.cancel()
            self._cut = None


class _Refusal(asyncio.Protocol):
    """Tells a problem whatever is asked, and ends."""

    def __init__(self, detail: str) -> None:
        self.problem = Unavailable(detail, retry_after_seconds=1)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        stream = cast("asyncio.Transport", transport)
        stream.write(bytes_of(self.problem))
        # To close before the request is read would take the answer back.
        stream.write_eof()
        asyncio.get_running_loop().call_later(_REFUSAL_SECONDS, stream.abort)
