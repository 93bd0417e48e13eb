"""Both clients behind one interface, so that each test runs with each of them."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from aiohttp import web

from audit.client import AsyncChanges, AsyncClient, AsyncPages, Client
from audit.settings import Settings
from audit.web.app import create_app
from tests.inprocess import Runner

#: Makes a client of a service at a URL.
Connect = Callable[..., Any]


class Waiting:
    """An AsyncClient, or a list of one, whose methods wait for their results."""

    def __init__(self, wrapped: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._wrapped = wrapped
        self._loop = loop

    def __repr__(self) -> str:
        return repr(self._wrapped).replace("AsyncClient", "Client")

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._wrapped, name)
        if not callable(method):
            return method

        def call(*arguments: Any, **named: Any) -> Any:
            result = method(*arguments, **named)
            if inspect.iscoroutine(result):
                return self._loop.run_until_complete(result)
            if inspect.isasyncgen(result):
                return self._iterate(result)
            is_list = isinstance(result, AsyncPages | AsyncChanges)
            return Waiting(result, self._loop) if is_list else result

        return call

    def __iter__(self) -> Iterator[Any]:
        return self._iterate(aiter(self._wrapped))

    def _iterate(self, iterator: Any) -> Iterator[Any]:
        async def following() -> tuple[Any, ...]:
            try:
                return (await anext(iterator),)
            except StopAsyncIteration:
                return ()

        while found := self._loop.run_until_complete(following()):
            yield found[0]


@pytest.fixture(params=["Client", "AsyncClient"])
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    """Make clients of one kind, and close them at the end."""
    made: list[Any] = []
    with asyncio.Runner() as runner:

        def make(url: str, **options: Any) -> Any:
            kind = Client if request.param == "Client" else AsyncClient
            client = kind(url, **options)
            made.append(client if kind is Client else Waiting(client, runner.get_loop()))
            return made[-1]

        yield make
        for client in made:
            client.close()


@pytest.fixture(scope="module")
def url(shared_dsn: str) -> Iterator[str]:
    """The URL of a service in a thread, on a database that the tests of a module share."""
    with service_thread(shared_dsn) as address:
        yield address


@pytest.fixture
def me() -> str:
    """A `created_by` for the tasks of one test."""
    return f"test {uuid.uuid4()}"


@contextlib.contextmanager
def service_thread(dsn: str, port: int = 0) -> Iterator[str]:
    """Run the service in a thread; yield its URL."""
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        site = runner.run(_started(dsn, port))
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        try:
            yield str(site.name)
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            assert site._runner
            runner.run(site._runner.cleanup())


async def _started(dsn: str, port: int) -> web.TCPSite:
    app = Runner(create_app(Settings(pool_size=4), dsn))
    await app.setup()
    site = web.TCPSite(app, "127.0.0.1", port)
    await site.start()
    return site


@pytest.fixture
def client(connect: Connect, url: str) -> Any:
    """A client of the service."""
    return connect(url)
