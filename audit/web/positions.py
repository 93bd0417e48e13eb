"""Positions in headers: what a client has written, and wants to see when it reads."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler
from multidict import istr

from audit.history.positions import parse_positions
from audit.web.state import SERVICE

#: Names the write of a response.
POSITION: Final = istr("Audit-Position")
_AT_LEAST: Final = istr("Audit-Position-At-Least")
#: On a standby: how old the state of the response may be.
_STALENESS: Final = istr("Audit-Staleness-Seconds")
#: Added before the number is written with one decimal, so that it is never less.
_ROUNDING: Final = 0.05


def at_position(handler: Handler) -> Handler:
    """Return a handler that answers from a state with the positions that the request names.

    On a standby, the response says how old it may be.
    """

    def handle(request: web.Request) -> Awaitable[web.StreamResponse]:
        given = request.headers.getall(_AT_LEAST, None)
        if given is None and request.app[SERVICE].staleness.seconds is None:
            return handler(request)
        return _answer_at(request, given, handler)

    return handle


async def _answer_at(
    request: web.Request, given: Sequence[str] | None, handler: Handler
) -> web.StreamResponse:
    service = request.app[SERVICE]
    if given is None:
        response = await handler(request)
    else:
        server = await service.positions.require(parse_positions(given))
        response = await handler(request)
        service.positions.require_same(server)
    seconds = service.staleness.seconds
    if seconds is not None:
        response.headers[_STALENESS] = f"{seconds + _ROUNDING:.1f}"
    return response
