"""What clients make a worker keep in memory: bodies that arrive, and responses not read yet."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from audit.errors import Unavailable

#: This much of each body is not counted, so that a few large ones do not keep the small ones out.
#: The number of connections limits what that can add up to.
_SMALL_BODY_BYTES: Final = 64 * 1024


class Incoming:
    """Limits the bytes of all bodies that are being received, or wait to be recorded."""

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._bytes = 0

    @contextmanager
    def body(self) -> Iterator[Body]:
        """Hold the body of one request for as long as the block runs."""
        body = Body(self)
        try:
            yield body
        finally:
            self._bytes -= body.counted

    def count(self, more: int) -> None:
        """Count bytes, unless they are too many.

        Raises:
            Unavailable: the bodies of all requests together would be over the limit.
        """
        if self._bytes + more > self._most:
            raise Unavailable(
                f"large bodies of other requests take up the {self._most} bytes for bodies"
                " (max_bodies_bytes); nothing is recorded",
                retry_after_seconds=1,
            )
        self._bytes += more


class Body:
    """The bytes of one body."""

    def __init__(self, incoming: Incoming) -> None:
        self._incoming = incoming
        self._bytes = 0
        self.counted = 0

    def add(self, size: int) -> None:
        """Note that more of the body has arrived.

        Raises:
            Unavailable: there is no room for it.
        """
        self._bytes += size
        more = max(0, self._bytes - _SMALL_BODY_BYTES) - self.counted
        if more > 0:
            self._incoming.count(more)
            self.counted += more


class Unread:
    """Limits the bytes of large responses that wait in sockets until clients read them.

    Over the limit, the connections whose clients have been reading for the longest are cut off. A
    body that several clients read is in memory once, and counts once.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._bytes = 0
        #: How many responses have a body, by its `id`.
        self._readers: dict[int, int] = {}
        #: The oldest first.
        self._held: dict[asyncio.Transport, bytes] = {}

    @contextmanager
    def response(self, transport: asyncio.Transport | None, body: bytes) -> Iterator[None]:
        """Hold a body for as long as the block sends it."""
        if transport is None:
            yield
            return
        self._held[transport] = body
        readers = self._readers.get(id(body), 0)
        self._readers[id(body)] = readers + 1
        if not readers:
            self._bytes += len(body)
        while self._bytes > self._most and len(self._held) > 1:
            oldest = next(iter(self._held))
            self._release(oldest)
            oldest.abort()
        try:
            yield
        finally:
            self._release(transport)

    def _release(self, transport: asyncio.Transport) -> None:
        body = self._held.pop(transport, None)
        if body is None:
            return
        self._readers[id(body)] -= 1
        if not self._readers[id(body)]:
            del self._readers[id(body)]
            self._bytes -= len(body)
