"""Whether the process lives, and whether it can answer."""

from __future__ import annotations

from aiohttp import web

from audit.database import pending_migrations
from audit.errors import Unavailable
from audit.handlers import POOL, json_response


async def healthz(request: web.Request) -> web.Response:
    """The process lives; nothing else is touched."""
    return json_response(b'{"status":"ok"}')


async def readyz(request: web.Request) -> web.Response:
    """The database answers and its migrations are current."""
    pending = await pending_migrations(request.app[POOL])
    if pending:
        raise Unavailable(
            f"the database lacks migrations: {', '.join(pending)}; run `audit migrate`",
            retry_after_seconds=10,
        )
    return json_response(b'{"status":"ready"}')
