"""Serves an application in the process of a test, on connections as a worker makes them."""

from __future__ import annotations

from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

from audit.process.connections import Connections, connections_of


class Runner(web.AppRunner):
    """Runs an application on the connections of a worker instead of those of aiohttp."""

    _connections: Connections | None = None

    def __init__(self, app: web.Application) -> None:
        super().__init__(app, handler_cancellation=True)

    @property
    def server(self) -> Any:
        """What makes the protocol of each connection; None before `setup`."""
        server = super().server
        if server is not None and self._connections is None:
            self._connections = connections_of(self.app, server)
        return self._connections


class Server(TestServer):
    """A server of aiohttp's test client on these connections."""

    async def _make_runner(self, **_: Any) -> web.AppRunner:
        return Runner(self.app)
