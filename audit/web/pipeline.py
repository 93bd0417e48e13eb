"""The path of every request to its handler, and of the response back.

aiohttp finds the route, and calls in this order:

1. `tracing` and `cors`, if they are configured.
2. `Pipeline.every_request`, also if there is no route.
3. The handler that `Pipeline.protect` returned for the route.
4. The handler of the route, in `audit.web.handlers`.
"""

from __future__ import annotations

import time
from functools import partial

from aiohttp import web
from aiohttp.typedefs import Handler

from audit.access.identity import Scope
from audit.deadlines import Deadline, DeadlineExceeded
from audit.errors import TimedOut
from audit.postgres.pool import note_statements
from audit.telemetry.metrics import CLIENT_LEFT
from audit.web.guard import Guard
from audit.web.observe import Observer
from audit.web.problems import add_common_headers, problem_response, request_id_of
from audit.web.routes import Route
from audit.web.state import DRAINING, REQUEST_ID


class Pipeline:
    """The checks, limits and records around all handlers."""

    def __init__(self, guard: Guard, observer: Observer, deadline: Deadline) -> None:
        self._guard = guard
        self._observer = observer
        self._deadline = deadline

    @web.middleware
    async def every_request(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer every failure with a problem; count the request, and log it."""
        request[REQUEST_ID] = request_id = request_id_of(request)
        statements = note_statements()
        status = CLIENT_LEFT
        started = time.perf_counter()
        try:
            try:
                response = await handler(request)
            except Exception as failure:  # noqa: BLE001 - the response and the log tell it
                response = problem_response(request, failure, request_id)
            if request.app[DRAINING].is_set():
                response.force_close()
            add_common_headers(response, request_id)
            status = response.status
        finally:
            self._observer.done(request, status, time.perf_counter() - started, statements)
        return response

    def protect(self, route: Route) -> Handler:
        """Return the handler of a route behind the access check and the limits of a request."""
        handler, scope = route.handler, route.scope
        admit = partial(self._guard.admit, scope=scope, allows_session=route.allows_session)
        # Recording limits the time of the body and the time of the write. One limit for both would
        # send a response while PostgreSQL still writes.
        # A reader of the feed waits for changes for as long as it likes.
        deadline = None if scope is Scope.RECORD or route.waits else self._deadline

        async def handle(request: web.Request) -> web.StreamResponse:
            rate_headers = await admit(request) if route.needs_key else {}
            if request.protocol.writing_paused:
                # The client has not read its previous responses yet.
                await request.writer.drain()
            if deadline is None:
                response = await handler(request)
            else:
                try:
                    response = await deadline.run(handler(request))
                except DeadlineExceeded:
                    raise TimedOut(f"the request took over {deadline.seconds:g} seconds") from None
            response.headers.update(rate_headers)
            return response

        return handle
