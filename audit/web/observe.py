"""What is recorded of each request: metrics, the request log and traces."""

from __future__ import annotations

from collections.abc import Iterable

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from audit.addresses import Networks, client_address
from audit.telemetry.metrics import UNMATCHED, Metrics
from audit.telemetry.request_log import REFUSALS, RequestLog
from audit.telemetry.tracing import Traces
from audit.web.state import IDENTITY, REASON, REQUEST_ID, ROWS

#: In characters. A reason may repeat text of the client.
_LONGEST_REASON = 200


class Observer:
    """Counts all requests, and logs some.

    Other parts of the service leave what they know for the log in the request, under REQUEST_ID,
    IDENTITY, ROWS and REASON.
    """

    def __init__(self, metrics: Metrics, log: RequestLog, trusted: Networks = ()) -> None:
        """`trusted` are the proxies whose `X-Forwarded-For` names the client."""
        self._metrics = metrics
        self._log = log
        self._trusted = trusted

    def done(
        self,
        request: web.Request,
        route: str,
        status: int,
        seconds: float,
        statements: Iterable[str],
    ) -> None:
        """Record that a request was answered with `status`.

        `route` is the path template. Paths themselves would create unlimited metrics.
        """
        self._metrics.request(route, request.method, status, seconds)
        is_refused = status in REFUSALS
        client = self._client(request) if is_refused else None
        if not self._log.wants(status, client):
            return
        reason = request.get(REASON) if is_refused else None
        self._log.log(
            {
                "request_id": request.get(REQUEST_ID),
                "client": client or self._client(request),
                "key_name": _key_name(request),
                "route": route,
                "method": request.method,
                "status": status,
                "duration_ms": round(1000 * seconds, 3),
                "rows": request.get(ROWS),
                "statements": sorted(statements),
                "reason": reason and reason[:_LONGEST_REASON],
            }
        )

    def _client(self, request: web.Request) -> str | None:
        # Called only for requests that are logged, because parsing the header takes time.
        forwarded = request.headers.getall("X-Forwarded-For", ()) if self._trusted else ()
        return client_address(request.remote, forwarded, self._trusted)


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
    """Return the path template of the route."""
    resource = request.match_info.route.resource
    return UNMATCHED if resource is None else resource.canonical


def _key_name(request: web.Request) -> str | None:
    identity = request.get(IDENTITY)
    return None if identity is None else identity.actor
