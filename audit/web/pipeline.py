"""The path of every request to its handler, and of the response back.

aiohttp finds the route, and calls in this order:

1. `tracing` and `cors`, if they are configured.
2. What `Pipeline.protect` returned for the route. If there is no route, the middleware
   `Pipeline.refuse_without_route` refuses the request with the same steps around it.
3. The handler of the route, in `audit.web.handlers`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from aiohttp import web
from aiohttp.typedefs import Handler

from audit.access.identity import Scope
from audit.deadlines import Deadline
from audit.postgres.pool import note_statements
from audit.telemetry.metrics import CLIENT_LEFT, UNMATCHED
from audit.web.guard import Guard
from audit.web.observe import Observer
from audit.web.positions import at_position
from audit.web.problems import add_common_headers, problem_response, request_id_of
from audit.web.routes import Route
from audit.web.state import REQUEST_ID


class Pipeline:
    """The checks, limits and records around all handlers."""

    def __init__(
        self, guard: Guard, observer: Observer, deadline: Deadline, draining: asyncio.Event
    ) -> None:
        self._guard = guard
        self._observer = observer
        self._deadline = deadline
        self._draining = draining
        self._refuse = self._around(_refuse, UNMATCHED)

    def protect(self, route: Route) -> Handler:
        """Return the handler of a route behind the access check and the limits of a request."""
        admit = partial(self._guard.admit, scope=route.scope, allows_session=route.allows_session)
        # Recording limits the time of the body and the time of the write. One limit for both would
        # send a response while PostgreSQL still writes.
        # A reader of the feed waits for changes for as long as it likes.
        has_deadline = not (route.scope is Scope.RECORD or route.waits)
        return self._around(
            at_position(route.handler) if route.reads else route.handler,
            route.path,
            admit=admit if route.needs_key else None,
            deadline=self._deadline if has_deadline else None,
        )

    @web.middleware
    def refuse_without_route(
        self, request: web.Request, handler: Handler
    ) -> Awaitable[web.StreamResponse]:
        """Refuse a request for which aiohttp has found no route."""
        has_route = request.match_info.http_exception is None
        return handler(request) if has_route else self._refuse(request)

    def _around(
        self,
        handler: Handler,
        path: str,
        admit: Callable[[web.Request], Awaitable[Mapping[str, str]]] | None = None,
        deadline: Deadline | None = None,
    ) -> Handler:
        """Return a handler that also does what is common to all requests.

        It answers every failure with a problem, counts the request, and logs it. `path` is the path
        template of the route.
        """

        async def handle(request: web.Request) -> web.StreamResponse:
            request[REQUEST_ID] = request_id = request_id_of(request)
            statements = note_statements()
            status = CLIENT_LEFT
            started = time.perf_counter()
            try:
                try:
                    rate_headers = None if admit is None else await admit(request)
                    if request.protocol.writing_paused:
                        # The client has not read its previous responses yet.
                        await request.writer.drain()
                    if deadline is None:
                        response = await handler(request)
                    else:
                        response = await deadline.run(handler(request))
                    if rate_headers:
                        response.headers.update(rate_headers)
                except Exception as failure:  # noqa: BLE001 - the response and the log tell it
                    response = problem_response(request, failure, request_id)
                if self._draining.is_set():
                    response.force_close()
                add_common_headers(response, request_id)
                status = response.status
            finally:
                seconds = time.perf_counter() - started
                self._observer.done(request, path, status, seconds, statements)
            return response

        return handle


async def _refuse(request: web.Request) -> web.StreamResponse:
    """Raise 404 or 405, as aiohttp does for a request without a route."""
    return await request.match_info.handler(request)
