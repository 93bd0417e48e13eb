"""Lets pages of other origins call the service from a browser (CORS, https://fetch.spec.whatwg.org).

An origin that is not listed gets the same answers without these headers, so a browser does not show
them to its page. Keys are sent in `Authorization`, never in cookies, so no credentials are allowed.
"""

from __future__ import annotations

from typing import Final

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

#: What a page may send, besides what it always may.
_SENT: Final = "Authorization, Content-Type, If-Match, If-None-Match, X-Request-ID"
#: What a page may read, besides what it always may.
_SHOWN: Final = (
    "Accept-Patch, Allow, ETag, Link, RateLimit, RateLimit-Policy, Retry-After, WWW-Authenticate,"
    " X-Request-ID, X-Total-Count"
)
#: How long a browser may remember what is allowed.
_SECONDS: Final = "600"


def cors(origins: frozenset[str]) -> Middleware:
    """Return the middleware that marks each response as one that these origins may read."""

    @web.middleware
    async def allow(request: web.Request, handler: Handler) -> web.StreamResponse:
        response = await handler(request)
        headers = response.headers
        # A cache must not give a response for one origin to another, or to a request without any.
        headers[hdrs.VARY] = ", ".join(filter(None, [headers.get(hdrs.VARY), hdrs.ORIGIN]))
        origin = request.headers.get(hdrs.ORIGIN)
        if origin not in origins:
            return response
        headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
        headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = _SHOWN
        is_options = request.method == hdrs.METH_OPTIONS and hdrs.ALLOW in headers
        if is_options and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers:
            headers[hdrs.ACCESS_CONTROL_ALLOW_METHODS] = headers[hdrs.ALLOW]
            headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = _SENT
            headers[hdrs.ACCESS_CONTROL_MAX_AGE] = _SECONDS
        return response

    return allow
