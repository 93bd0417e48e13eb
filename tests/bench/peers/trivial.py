"""The least that aiohttp can answer: what a request costs before anything is asked."""

from __future__ import annotations

import sys

import uvloop
from aiohttp import web


async def _ok(request: web.Request) -> web.Response:
    return web.Response(body=b"ok")


def main(port: int) -> None:
    """Serve on 127.0.0.1 until SIGTERM."""
    app = web.Application()
    app.router.add_get("/", _ok)
    loop = uvloop.new_event_loop()
    web.run_app(app, host="127.0.0.1", port=port, access_log=None, print=None, loop=loop)


if __name__ == "__main__":
    main(int(sys.argv[1]))
