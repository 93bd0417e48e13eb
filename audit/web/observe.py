"""The outermost middlewares: metrics, request log and traces."""

from __future__ import annotations

import time

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from audit.addresses import Networks, client_address
from audit.postgres.pool import note_statements
from audit.telemetry.metrics import CLIENT_LEFT, UNMATCHED, Metrics
from audit.telemetry.request_log import REFUSALS, RequestLog
from audit.telemetry.tracing import Traces
from audit.web.state import IDENTITY, REASON, REQUEST_ID, ROWS

#: In characters. A reason may repeat text of the client.
_LONGEST_REASON = 200


def observe(metrics: Metrics, log: RequestLog, trusted: Networks = ()) -> Middleware:
    """Return the middleware that counts all requests and logs some.

    Other parts of the service leave what they know for the log in the request, under REQUEST_ID,
    IDENTITY, ROWS and REASON. `trusted` are the proxies whose `X-Forwarded-For` names the client.
    """

    def client_of(request: web.Request) -> str | None:
        # Called only for requests that are logged, because parsing the header takes time.
        forwarded = request.headers.getall("X-Forwarded-For", ()) if trusted else ()
        return client_address(request.remote, forwarded, trusted)

    @web.middleware
    async def observed(request: web.Request, handler: Handler) -> web.StreamResponse:
        status = CLIENT_LEFT
        ran = note_statements()
        started = time.perf_counter()
        try:
            response = await handler(request)
            status = response.status
        finally:
            seconds = time.perf_counter() - started
            route = _route(request)
            metrics.request(route, request.method, status, seconds)
            is_refused = status in REFUSALS
            client = client_of(request) if is_refused else None
            if log.wants(status, client):
                reason = request.get(REASON) if is_refused else None
                log.log(
                    {
                        "request_id": request.get(REQUEST_ID),
                        "client": client or client_of(request),
                        "key_name": _key_name(request),
                        "route": route,
                        "method": request.method,
                        "status": status,
                        "duration_ms": round(1000 * seconds, 3),
                        "rows": request.get(ROWS),
                        "statements": sorted(ran),
                        "reason": reason and reason[:_LONGEST_REASON],
                    }
                )
        return response

    return observed


def tracing(traces: Traces) -> Middleware:
    """Return the middleware that records a span for each request."""

    @web.middleware
    async def traced(request: web.Request, handler: Handler) -> web.StreamResponse:
        with traces.request(request.method, _route(request), request.headers) as span:
            response = await handler(request)
            traces.answered(span, response.status)
            return response

    return traced


def _route(request: web.Request) -> str:
    """The path template of the route. Paths themselves would create unlimited metrics."""
    resource = request.match_info.route.resource
    return UNMATCHED if resource is None else resource.canonical


def _key_name(request: web.Request) -> str | None:
    identity = request.get(IDENTITY)
    return None if identity is None else identity.actor
