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


def at_position(handler: Handler) -> Handler:
    """Return a handler that answers from a state with the positions that the request names."""

    def handle(request: web.Request) -> Awaitable[web.StreamResponse]:
        given = request.headers.getall(_AT_LEAST, None)
        return handler(request) if given is None else _answer_at(request, given, handler)

    return handle


async def _answer_at(
    request: web.Request, given: Sequence[str], handler: Handler
) -> web.StreamResponse:
    positions = request.app[SERVICE].positions
    server = await positions.require(parse_positions(given))
    response = await handler(request)
    positions.require_same(server)
    return response
