"""Watches every request: middlewares around all others."""

from __future__ import annotations

import time

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from audit import logs
from audit.access import ANYONE
from audit.database import note_statements
from audit.handlers import IDENTITY, REQUEST_ID, ROWS
from audit.metrics import CLIENT_LEFT, UNMATCHED, Metrics
from audit.tracing import Traces


def watching(metrics: Metrics, log_sample: float) -> Middleware:
    """Return the middleware that counts requests, and logs some.

    What is logged stands in the request under REQUEST_ID, IDENTITY and ROWS, where it is known.
    """

    @web.middleware
    async def watch(request: web.Request, handler: Handler) -> web.StreamResponse:
        status = CLIENT_LEFT
        ran = note_statements()
        started = time.perf_counter()
        try:
            response = await handler(request)
            status = response.status
        except web.HTTPException as redirected:
            status = redirected.status
            raise
        finally:
            seconds = time.perf_counter() - started
            route = _route(request)
            metrics.request(route, request.method, status, seconds)
            if logs.is_told(status, log_sample):
                logs.tell(
                    {
                        "request_id": request.get(REQUEST_ID),
                        "key_name": _key_name(request),
                        "route": route,
                        "method": request.method,
                        "status": status,
                        "duration_ms": round(1000 * seconds, 3),
                        "rows": request.get(ROWS),
                        "statements": sorted(ran),
                    }
                )
        return response

    return watch


def tracing(traces: Traces) -> Middleware:
    """Return the middleware that makes a span of each request."""

    @web.middleware
    async def trace(request: web.Request, handler: Handler) -> web.StreamResponse:
        with traces.request(request.method, _route(request), request.headers) as span:
            response = await handler(request)
            traces.answered(span, response.status)
            return response

    return trace


def _route(request: web.Request) -> str:
    """The template of its route: what has no bound stays out."""
    resource = request.match_info.route.resource
    return UNMATCHED if resource is None else resource.canonical


def _key_name(request: web.Request) -> str | None:
    identity = request.get(IDENTITY)
    return None if identity is None or identity is ANYONE else identity.name
