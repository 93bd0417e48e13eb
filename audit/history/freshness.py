"""Versions of the history. A cached response is sent only while its version is current.

No response is older than the request that it answers. The service knows this without running the
query again:

1. A *version* (`sql/counts/read_token.sql`) is the set of transactions that have ended. The set
   only grows. If two versions are equal, no transaction ended in between, and every statement that
   ran in between saw the same rows. A window that moves with the clock also depends on the second.
2. A request uses a version that was read by a statement sent after the request arrived. So the
   version includes every write that was confirmed before the request, by any process or program.
3. A response is cached under a version that was read *before* the response was computed. So the
   response may be newer than its version, but never older. If it is newer, a transaction has ended
   since, no later version is equal, and the response is not sent again. If a later version is
   equal, the response is what the query would return now.
4. The response is computed on the server that its version was read on. If the connection pool moves
   to another server in between, the request fails, and nothing is cached.

So a request may get any response that is cached, or is being computed, under its own version. A
client that holds a response with the ETag of that version holds the current response.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, lru_cache
from importlib.metadata import version as version_of
from typing import Final

_RELEASE: Final = version_of("task-audit")
#: How often a request passes through the event loop between its socket and `current`.
_TURNS_TO_HERE: Final = 3
#: Versions read on one connection before it is given back, so that queries can have it.
_READS_IN_A_ROW: Final = 16


@dataclass(frozen=True)
class Version:
    """A state of the history. Two states with the same `text` have the same tasks."""

    text: str
    clock: datetime
    """The database's clock, rounded down to a second."""
    server: str = ""
    """The database server it was read on."""

    @cached_property
    def of_this_second(self) -> Version:
        """The version of a window that moves with the clock: another one each second."""
        return Version(f"{self.text} {self.clock.timestamp()}", self.clock, self.server)

    def etag(self, key: str) -> str:
        """Return the ETag of the response to the request `key` in this version.

        It does not depend on the body, so every worker makes the same one, before the response is
        computed. It is weak because it stands for the plain and the compressed body.
        """
        return _etag(self.text, key)


@lru_cache(maxsize=128)
def _etag(version: str, key: str) -> str:
    text = f"{_RELEASE}\n{version}\n{key}".encode("utf-8", "surrogateescape")
    return f'W/"{hashlib.blake2b(text, digest_size=12).hexdigest()}"'


class Freshness:
    """Reads the current version, with one statement at a time for all requests that wait."""

    def __init__(self, read: Callable[[], AsyncGenerator[Version, None]]) -> None:
        """`read` opens a connection and yields versions, each read when it is asked for."""
        self._read = read
        self._waiting: list[asyncio.Future[Version]] = []
        self._reader: asyncio.Task[None] | None = None

    async def current(self) -> Version:
        """Return a version read by a statement that is sent after this call.

        Raises:
            Problem: the database did not answer. All requests that wait for it get this problem.
        """
        future: asyncio.Future[Version] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        if self._reader is None:
            self._reader = asyncio.create_task(self._read_while_waited_for())
        return await future

    async def _read_while_waited_for(self) -> None:
        while self._waiting:
            waiting: list[asyncio.Future[Version]] = []
            try:
                async with aclosing(self._read()) as versions:
                    for _ in range(_READS_IN_A_ROW):
                        # Requests that arrive from here on wait for the next statement.
                        waiting, self._waiting = self._waiting, []
                        version = await anext(versions)
                        for future in waiting:
                            if not future.done():
                                future.set_result(version)
                        # Clients that get their response now may send the next request at once.
                        # Wait for these requests, so that the next statement is for all of them.
                        for _ in range(_TURNS_TO_HERE):
                            await asyncio.sleep(0)
                        if not self._waiting:
                            break
            except Exception as failure:  # noqa: BLE001 - the waiting requests raise it
                for future in waiting:
                    if not future.done():
                        future.set_exception(failure)
        self._reader = None
