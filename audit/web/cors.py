"""CORS headers, so that pages of listed origins can call the service (https://fetch.spec.whatwg.org).

Other origins get the same responses without these headers, and browsers do not pass them on to the
page. Pages of other origins send keys in `Authorization`. The cookie of a session is only for the
web page of the service, so credentials are not allowed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

#: The request headers that a page may send in addition to those that CORS always allows.
_REQUEST_HEADERS: Final = (
    "Audit-Position-At-Least, Authorization, Content-Type, If-Match, If-None-Match, Last-Event-ID,"
    " X-Request-ID"
)
#: The response headers that a page may read in addition to those that CORS always allows.
_RESPONSE_HEADERS: Final = (
    "Accept-Patch, Allow, Audit-Position, Audit-Staleness-Seconds, Content-Disposition, ETag,"
    " Feed-Position, Link, RateLimit, RateLimit-Policy, Retry-After, WWW-Authenticate, X-Export-ID,"
    " X-Request-ID, X-Since, X-Snapshot, X-Total, X-Total-Count"
)
#: The headers of a response to a request whose `Origin` was not read. A page of any origin may read
#: such a response, which says no more than why the service did not read the request.
UNREAD_REQUEST_HEADERS: Final[Mapping[str, str]] = {
    hdrs.ACCESS_CONTROL_ALLOW_ORIGIN: "*",
    hdrs.ACCESS_CONTROL_EXPOSE_HEADERS: _RESPONSE_HEADERS,
}
#: How long a browser may cache the response to a preflight request.
_MAX_AGE_SECONDS: Final = "600"


def cors(origins: frozenset[str]) -> Middleware:
    """Return the middleware that allows these origins to read all responses."""

    @web.middleware
    async def allow(request: web.Request, handler: Handler) -> web.StreamResponse:
        response = await handler(request)
        headers = response.headers
        # A cache must not serve the response for one origin to a request of another or of none.
        headers[hdrs.VARY] = ", ".join(filter(None, [headers.get(hdrs.VARY), hdrs.ORIGIN]))
        origin = request.headers.get(hdrs.ORIGIN)
        if origin not in origins:
            return response
        headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
        headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = _RESPONSE_HEADERS
        is_options = request.method == hdrs.METH_OPTIONS and hdrs.ALLOW in headers
        if is_options and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers:
            headers[hdrs.ACCESS_CONTROL_ALLOW_METHODS] = headers[hdrs.ALLOW]
            headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = _REQUEST_HEADERS
            headers[hdrs.ACCESS_CONTROL_MAX_AGE] = _MAX_AGE_SECONDS
        return response

    return allow
