"""The connections of a worker to its clients: their number, their time limits and their memory."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final, cast
from weakref import WeakSet

from aiohttp import web

from audit.errors import Problem, Unavailable
from audit.web import problems
from audit.web.buffers import Unread
from audit.web.cors import UNREAD_REQUEST_HEADERS
from audit.web.state import METRICS, SETTINGS

#: How long a refused client may take to read the answer.
_REFUSAL_SECONDS: Final = 1


class Connections:
    """Creates a protocol for each new connection of a server.

    At most `most` connections are open. A further client gets 503.
    A client that does not read a response within `answer_seconds` is disconnected, and so is one
    that sends no complete head of a request for `idle_seconds`.
    Responses that clients have not read yet take at most `most_unread_bytes` of memory.
    `count_refusal` is called with the status of each answer that no middleware sees, and
    `refusal_headers` are added to these answers.
    """

    def __init__(
        self,
        server: web.Server,
        count_refusal: Callable[[int], None],
        refusal_headers: Mapping[str, str],
        *,
        most: int,
        answer_seconds: float,
        idle_seconds: float,
        most_unread_bytes: int,
    ) -> None:
        self.unread = Unread(most_unread_bytes)
        self.count_refusal = count_refusal
        self.refusal_headers = refusal_headers
        self.answer_seconds = answer_seconds
        self._server = server
        self._most = most
        self._idle_seconds = idle_seconds
        # Weak, because `connection_lost` is not called if a connection fails while it is made.
        self._open: WeakSet[_Connection] = WeakSet()
        self._all_closed: asyncio.Event | None = None

    def __call__(self) -> asyncio.Protocol:
        """Return the protocol of a new connection."""
        if len(self._open) >= self._most:
            refusal = _Refusal(
                Unavailable(
                    f"{self._most} connections are open in this process",
                    retry_after_seconds=1,
                    headers=self.refusal_headers,
                )
            )
            self.count_refusal(refusal.problem.status)
            return refusal
        connection = _Connection(
            self,
            self._server,
            loop=asyncio.get_running_loop(),
            access_log=None,
            keepalive_timeout=self._idle_seconds,
            # aiohttp would accept compressed bodies that are cut off. `audit.web.content_coding`
            # decompresses them.
            auto_decompress=False,
            max_line_size=problems.MAX_URL_BYTES,
            max_field_size=problems.MAX_HEADER_BYTES,
            max_headers=problems.MAX_HEADERS,
        )
        self._open.add(connection)
        return connection

    def lost(self, connection: _Connection) -> None:
        """Forget a connection that is closed."""
        self._open.discard(connection)
        if self._all_closed is not None and not self._open:
            self._all_closed.set()

    async def wait_closed(self, seconds: float) -> None:
        """Wait until all connections are closed, but no longer than `seconds`."""
        if not self._open:
            return
        self._all_closed = asyncio.Event()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._all_closed.wait(), seconds)


def connections_of(app: web.Application, server: web.Server) -> Connections:
    """Return the connections of an application, with the limits of its settings."""
    settings = app[SETTINGS]
    return Connections(
        server,
        app[METRICS].refused,
        UNREAD_REQUEST_HEADERS if settings.cors_origin else {},
        most=settings.max_connections,
        answer_seconds=settings.request_timeout_seconds,
        idle_seconds=settings.idle_timeout_seconds,
        most_unread_bytes=settings.max_unread_bytes,
    )


class _Connection(web.RequestHandler):
    """A connection that answers with problems also what no middleware sees."""

    __slots__ = ("__weakref__", "_abort", "_connections", "answer_seconds", "unread")

    def __init__(self, connections: Connections, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.unread = connections.unread
        #: How long the client may take to read. A handler may change it for the rest of the time.
        self.answer_seconds = connections.answer_seconds
        self._connections = connections
        #: Aborts the connection unless its client reads in time.
        self._abort: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        # Writing pauses when the kernel's buffer is full, and resumes when the client has read.
        cast("asyncio.Transport", transport).set_write_buffer_limits(high=0)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - the text of aiohttp's own answer
    ) -> web.StreamResponse:
        response = problems.refuse_unreadable(request, status, exc)
        response.headers.update(self._connections.refusal_headers)
        self._connections.count_refusal(response.status)
        return response

    def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> Coroutine[Any, Any, tuple[web.StreamResponse, bool]]:
        if type(resp) is web.HTTPExpectationFailed:
            resp = problems.refuse_expectation(request)
        return super().finish_response(request, resp, start_time)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.transport is not None:
            self._abort = self._loop.call_later(self.answer_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._cancel_abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._cancel_abort()
        self._connections.lost(self)
        super().connection_lost(exc)

    def _cancel_abort(self) -> None:
        if self._abort is not None:
            self._abort.cancel()
            self._abort = None


class _Refusal(asyncio.Protocol):
    """Sends a problem without reading a request, and closes the connection."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        stream = cast("asyncio.Transport", transport)
        stream.write(problems.bytes_of(self.problem))
        # To close now, with the request unread, would reset the connection and lose the answer.
        stream.write_eof()
        asyncio.get_running_loop().call_later(_REFUSAL_SECONDS, stream.abort)
