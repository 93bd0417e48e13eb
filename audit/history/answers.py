"""The cache of responses to list requests, and the single flight of their computation."""

from __future__ import annotations

import asyncio
import zlib
from collections import OrderedDict
from functools import partial
from typing import Final

from audit.history.asking import Reading
from audit.history.freshness import Freshness, Version
from audit.history.query import TaskQuery
from audit.once import Once

#: The memory of an entry besides its key and bodies: mostly the validated query.
_OVERHEAD_BYTES: Final = 3072
#: An entry has its key as text, once more in the query, where decoded text may be wider, and twice
#: in the links of its page.
_BYTES_PER_CHARACTER: Final = 7
_GZIP: Final = zlib.MAX_WBITS | 16
_FASTEST: Final = 1
#: A longer body is compressed in a thread, so that it does not block the event loop.
_LONG_BYTES: Final = 256 * 1024


class Answer:
    """The page that answers a query, as JSON."""

    def __init__(self, body: bytes, rows: int, total: int | None, next_cursor: str | None) -> None:
        self.body = body
        self.rows = rows
        self.total = total
        self.next_cursor = next_cursor
        self.gzip_body: bytes | None = None
        """The same body compressed, once a client has asked for that."""
        self.compressing: Once[bytes] = Once()
        self.headers: dict[str, str] | None = None
        """The headers of the response, once they were made for the first client."""


class _Entry:
    """What the cache knows about a request: its query, and its answer in one version."""

    def __init__(self, query: TaskQuery, version: str | None = None) -> None:
        self.query = query
        self.version = version
        self.answer: Answer | None = None
        self.computing: Once[Answer] = Once()
        self.counted_bytes = 0


class Answers:
    """Computes the answers to queries, and caches the most recently used ones.

    A request is identified by its key: everything that its response depends on besides the tasks.
    """

    def __init__(self, reading: Reading, max_bytes: int) -> None:
        """`max_bytes` limits the memory of the cache. With 0, nothing is cached or shared."""
        self._reading = reading
        self._freshness = Freshness(reading.read_versions)
        self._max_bytes = max_bytes
        #: By key; the most recently used one is the last.
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self.cached_bytes = 0

    def known_query(self, key: str) -> TaskQuery | None:
        """Return the query of a request that was validated before; None if it is not known."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        return entry.query

    def remember(self, key: str, query: TaskQuery) -> TaskQuery:
        """Cache the validated query of a request, and return it."""
        if self._max_bytes:
            self._put(key, _Entry(query))
        return query

    async def current_version(self, query: TaskQuery) -> Version | None:
        """Return the version that an answer to `query` may have now; None if nothing is cached."""
        if not self._max_bytes:
            return None
        version = await self._freshness.current()
        return version.of_this_second if query.moves_with_clock else version

    async def under(self, version: Version | None, key: str, query: TaskQuery) -> Answer:
        """Return the answer in a version: from the cache, or computed once for all who wait."""
        if version is None:
            return await self._compute(query)
        entry = self._entries.get(key)
        if entry is None or entry.version != version.text:
            entry = _Entry(query, version.text)
            self._put(key, entry)
        if entry.answer is None:
            compute = partial(self._compute, query, version)
            entry.answer = await entry.computing.result(compute)
            self._count(key, entry)
        return entry.answer

    async def gzip(self, key: str, answer: Answer) -> bytes:
        """Return the compressed body of an answer: cached, or compressed once for all who wait."""
        if answer.gzip_body is None:
            answer.gzip_body = await answer.compressing.result(partial(_compress, answer.body))
            entry = self._entries.get(key)
            if entry and entry.answer is answer:
                self._count(key, entry)
        return answer.gzip_body

    async def _compute(self, query: TaskQuery, version: Version | None = None) -> Answer:
        if version is None:
            page = await self._reading.list_tasks(query)
        else:
            page = await self._reading.list_tasks(query, clock=version.clock, server=version.server)
        return Answer(page.to_json(), page.rows, page.total, page.next_cursor)

    def _put(self, key: str, entry: _Entry) -> None:
        self._drop(key)
        self._entries[key] = entry
        self._count(key, entry)

    def _count(self, key: str, entry: _Entry) -> None:
        """Update the bytes of an entry, and drop the least recently used ones over the limit."""
        if self._entries.get(key) is not entry:
            return
        size = _size(key, entry)
        if size > self._max_bytes:
            self._drop(key)
            return
        self.cached_bytes += size - entry.counted_bytes
        entry.counted_bytes = size
        while self.cached_bytes > self._max_bytes:
            self._drop(next(iter(self._entries)))

    def _drop(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        if entry:
            self.cached_bytes -= entry.counted_bytes


def _size(key: str, entry: _Entry) -> int:
    """Return the approximate memory of an entry in bytes."""
    size = _OVERHEAD_BYTES + _BYTES_PER_CHARACTER * len(key)
    if entry.answer:
        size += len(entry.answer.body) + len(entry.answer.gzip_body or b"")
    return size


async def _compress(body: bytes) -> bytes:
    if len(body) > _LONG_BYTES:
        return await asyncio.to_thread(zlib.compress, body, _FASTEST, _GZIP)
    return zlib.compress(body, _FASTEST, _GZIP)
