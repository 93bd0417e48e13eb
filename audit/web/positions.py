"""Positions in headers: what a client has written, and wants to see when it reads."""

from __future__ import annotations

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

    async def handle(request: web.Request) -> web.StreamResponse:
        service = request.app[SERVICE]
        given = request.headers.getall(_AT_LEAST, None)
        server = None if given is None else await service.positions.require(parse_positions(given))
        response = await handler(request)
        if server is not None:
            service.positions.require_same(server)
        seconds = await service.staleness.seconds()
        if seconds is not None:
            response.headers[_STALENESS] = f"{seconds + _ROUNDING:.1f}"
        return response

    return handle
