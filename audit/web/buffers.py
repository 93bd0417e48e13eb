"""Limits the memory for request bodies, and for responses that clients have not read yet."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from audit.errors import Unavailable

#: This part of each body is not counted, so that a few large bodies do not keep small ones out. The
#: number of connections limits its sum.
_FREE_BYTES: Final = 64 * 1024


class BodyMemory:
    """Limits the bytes of all bodies that arrive, are parsed, or wait to be recorded."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0

    @contextmanager
    def request(self) -> Iterator[Callable[[int], None]]:
        """Yield a function that reserves bytes for one request until the block ends.

        Raises:
            Unavailable: all requests together would exceed the limit.
        """
        size = counted = 0

        def reserve(more: int) -> None:
            nonlocal size, counted
            size += more
            uncounted = max(0, size - _FREE_BYTES - counted)
            if self._bytes + uncounted > self._max_bytes:
                raise Unavailable(
                    f"large bodies of other requests take up the {self._max_bytes} bytes for bodies"
                    " (max_bodies_bytes); nothing is recorded",
                    retry_after_seconds=1,
                )
            self._bytes += uncounted
            counted += uncounted

        try:
            yield reserve
        finally:
            self._bytes -= counted


class Unread:
    """Limits the bytes of large responses that wait in sockets until clients read them.

    Over the limit, the oldest responses are cut off. A body that is sent to several clients is in
    memory once, and counts once.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        #: The number of responses with the same body, by the `id` of the body.
        self._readers: dict[int, int] = {}
        #: The body sent on each connection. The oldest is first.
        self._held: dict[asyncio.Transport, bytes] = {}

    @contextmanager
    def response(self, transport: asyncio.Transport | None, body: bytes) -> Iterator[None]:
        """Count a body for as long as the block sends it."""
        if transport is None:
            yield
            return
        self._held[transport] = body
        readers = self._readers.get(id(body), 0)
        self._readers[id(body)] = readers + 1
        if not readers:
            self._bytes += len(body)
        while self._bytes > self._max_bytes and len(self._held) > 1:
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
