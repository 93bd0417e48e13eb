"""Watches every request: one middleware, around all others."""

from __future__ import annotations

import time

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from audit.metrics import CLIENT_LEFT, UNMATCHED, Metrics


def watching(metrics: Metrics) -> Middleware:
    """Return the middleware that counts requests."""

    @web.middleware
    async def watch(request: web.Request, handler: Handler) -> web.StreamResponse:
        status = CLIENT_LEFT
        started = time.perf_counter()
        try:
            response = await handler(request)
            status = response.status
        except web.HTTPException as redirected:
            status = redirected.status
            raise
        finally:
            resource = request.match_info.route.resource
            route = UNMATCHED if resource is None else resource.canonical
            metrics.request(route, request.method, status, time.perf_counter() - started)
        return response

    return watch
