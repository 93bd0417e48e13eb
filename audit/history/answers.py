"""The cache of responses to queries, and the single flight of their computation."""

from __future__ import annotations

import asyncio
import hashlib
import zlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final, Protocol, TypeVar

from audit.history.asking import Reading
from audit.history.changes import ChangeFilter, Changes
from audit.history.freshness import Freshness, Version
from audit.history.patching import PageInList, widened
from audit.history.query import TaskFilter
from audit.history.task import TaskPage
from audit.once import Once
from audit.telemetry.metrics import Metrics

#: The memory of an entry besides its key and bodies: mostly the validated query.
_OVERHEAD_BYTES: Final = 3072
#: An entry has its key as text, once more in the query, where decoded text may be wider, and twice
#: in the links of its page.
_BYTES_PER_CHARACTER: Final = 7
_GZIP: Final = zlib.MAX_WBITS | 16
_FASTEST: Final = 1
#: A longer body is compressed or digested in a thread, so that it does not block the event loop.
_LONG_BYTES: Final = 256 * 1024
_ETAG_DIGITS: Final = 24
#: Changes are applied to pages up to this size, and not many at once, since the event loop waits.
_MAX_PATCHED_BYTES: Final = 1024 * 1024
_MAX_PATCHES: Final = 200
_SECOND: Final = timedelta(seconds=1)
_FOREVER: Final = datetime.max.replace(tzinfo=UTC)

Transformed = TypeVar("Transformed")


class Result(Protocol):
    """What a query returns: a page, or statistics."""

    @property
    def rows(self) -> int:
        """The number of tasks in the page; 0 for statistics."""

    @property
    def total(self) -> int | None:
        """How many tasks match, if that is known."""

    @property
    def next_cursor(self) -> str | None:
        """The cursor of the next page."""

    @property
    def valid_until(self) -> datetime | None:
        """When it is out of date by the database's clock although no task has changed; or None."""

    def to_json(self) -> bytes:
        """Return the body of the response."""


class Compute(Protocol):
    """Computes the result of a query in this version or a later one; `days` count back from it."""

    def __call__(self, *, version: Version) -> Awaitable[Result]: ...  # noqa: D102 - see above


@dataclass(frozen=True, slots=True)
class Question:
    """A validated query, and what computes its result."""

    query: TaskFilter
    compute: Compute


class Answer:
    """The result of a query, as JSON."""

    def __init__(self, result: Result, body: bytes, etag: str) -> None:
        self.body = body
        self.etag = etag
        """A digest of the body, so every worker makes the same one. It is weak because it stands
        for the plain and the compressed body."""
        self.rows = result.rows
        self.total = result.total
        self.next_cursor = result.next_cursor
        self.valid_until = result.valid_until or _FOREVER
        self.gzip_body: bytes | None = None
        """The same body compressed, once a client has asked for that."""
        self.compressing: Once[bytes] = Once()
        self.headers: dict[str, str] | None = None
        """The headers of the response, once they were made for the first client."""


class _Entry:
    """What the cache knows about a request: its question, and its answer once it is computed."""

    def __init__(self, question: Question, version: Version) -> None:
        query = question.query
        self.question = question
        self.version = version
        """The version before the answer was computed."""
        self.answer: Answer | None = None
        self.page: TaskPage | PageInList | None = None
        """The answer, if changes can be applied to it: it is of the snapshot of its version."""
        self.reads_wide = False
        """Whether to read tasks around the page too, because changes did not determine it."""
        self.changes = ChangeFilter(query, version.clock)
        self.checked_to = version.number
        """No change up to this one affects the answer."""
        self.valid_until = version.clock + _SECOND if query.moves_with_clock else _FOREVER
        """No task leaves the window before the database's clock shows this time."""
        self.computing: Once[Answer] = Once()
        self.extending: Once[None] = Once()
        self.counted_bytes = 0


class Answers:
    """Computes the answers to queries, and caches the most recently used ones.

    A request is identified by its key: everything that its response depends on besides the tasks.
    `audit.history.freshness` explains when a cached answer is sent again.
    """

    def __init__(self, reading: Reading, max_bytes: int, metrics: Metrics | None = None) -> None:
        """`max_bytes` limits the memory of the cache. With 0, nothing is cached or shared."""
        self._reading = reading
        self._metrics = metrics or Metrics()
        self._changes = Changes(self._metrics)
        self._freshness = Freshness(partial(reading.read_versions, self._changes))
        self._max_bytes = max_bytes
        #: By key; the most recently used one is the last.
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self.cached_bytes = 0

    def known_question(self, key: str) -> Question | None:
        """Return the question of a request that was validated before; None if it is not cached."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        return entry.question

    async def current_version(self) -> Version:
        """Return the version that an answer may have now."""
        return await self._freshness.current()

    async def under(self, version: Version, key: str, question: Question) -> Answer:
        """Return the answer in a version: from the cache, or computed once for all who wait."""
        if not self._max_bytes:
            return await _answer(await question.compute(version=version))
        entry = self._entries.get(key)
        if entry and entry.answer and entry.valid_until <= version.clock < entry.answer.valid_until:
            if self._is_unaffected(entry, version):
                await entry.extending.result(partial(self._extend, entry, version))
            entry = self._entries.get(key)
        if (
            entry is None
            or version.clock >= entry.valid_until
            or not self._is_unaffected(entry, version)
        ):
            entry = self._patched(entry, version) or self._replaced(entry, question, version)
            self._put(key, entry)
        self._metrics.answered(is_cached=entry.answer is not None)
        if entry.answer is None:
            entry.answer = await entry.computing.result(partial(self._compute, entry, version))
            entry.valid_until = min(entry.valid_until, entry.answer.valid_until)
            self._count(key, entry)
        return entry.answer

    async def gzip(self, key: str, answer: Answer) -> bytes:
        """Return the compressed body of an answer: cached, or compressed once for all who wait."""
        if answer.gzip_body is None:
            answer.gzip_body = await answer.compressing.result(
                partial(_in_thread_if_long, _compress, answer.body)
            )
            entry = self._entries.get(key)
            if entry and entry.answer is answer:
                self._count(key, entry)
        return answer.gzip_body

    def _is_unaffected(self, entry: _Entry, version: Version) -> bool:
        """Return whether no change up to a version affects the answer of an entry."""
        if entry.checked_to < version.number:
            if self._changes.affect(entry.changes, entry.checked_to):
                return False
            entry.checked_to = version.number
        return True

    async def _extend(self, entry: _Entry, version: Version) -> None:
        """Keep an answer until the next task leaves its window, or until it is out of date."""
        assert entry.answer  # noqa: S101 - `under` checks it
        until, query = entry.answer.valid_until, entry.question.query.watched
        if query.span:
            departure = await self._reading.next_departure(
                query, version=version._replace(clock=entry.version.clock)
            )
            until = min(until, departure)
        # Before the statement ran, a task may have left the window and then been changed, so that
        # the statement did not find it. The next version contains this change.
        if self._is_unaffected(entry, await self._freshness.current()):
            entry.valid_until = until

    @property
    def _max_patched_bytes(self) -> int:
        return min(self._reading.max_page_bytes, _MAX_PATCHED_BYTES)

    async def _compute(self, entry: _Entry, version: Version) -> Answer:
        query = entry.question.query
        wide = widened(query) if entry.reads_wide else None
        if wide is not None:
            page = await self._reading.list_tasks(wide, version=version)
            part = PageInList.of(query, page)
            made = part.to_task_page(version.clock, self._max_patched_bytes) if part else None
            if made is not None:
                self._keep_page(entry, version, page.snapshot, part)
                return await _answer(made)
        result = await entry.question.compute(version=version)
        if isinstance(result, TaskPage) and len(result.tasks_json) <= _MAX_PATCHED_BYTES:
            self._keep_page(entry, version, result.snapshot, result)
        return await _answer(result)

    def _keep_page(
        self,
        entry: _Entry,
        version: Version,
        snapshot: str | None,
        page: TaskPage | PageInList | None,
    ) -> None:
        """Keep the page of an entry for the changes to come, if it is of the version's snapshot."""
        if version.is_of(snapshot):
            entry.page = page
            self._changes.reads_documents = True

    def _patched(self, entry: _Entry | None, version: Version) -> _Entry | None:
        """Return an entry with the answer in a version, made from an earlier one and the changes.

        None if the answer has to be computed.
        """
        if entry is None or entry.page is None or version.clock >= entry.valid_until:
            return None
        changes = self._changes.since(entry.checked_to)
        if changes is None or len(changes) > _MAX_PATCHES:
            return None
        patched = _Entry(entry.question, version)
        page: PageInList | None
        if isinstance(entry.page, TaskPage):
            page = PageInList.of(entry.question.query, entry.page)
        else:
            page = entry.page
        page = page.after(changes, patched.changes) if page else None
        result = page.to_task_page(version.clock, self._max_patched_bytes) if page else None
        if result is None:
            return None
        body = result.to_json()
        patched.page = page
        patched.answer = Answer(result, body, _etag(body))
        patched.checked_to = self._changes.number
        patched.valid_until = min(entry.valid_until, patched.changes.departure(changes))
        return patched

    def _replaced(self, entry: _Entry | None, question: Question, version: Version) -> _Entry:
        """Return an entry without an answer, in the place of one that is out of date."""
        new = _Entry(question, version)
        if entry is not None and (entry.page is not None or entry.reads_wide):
            new.reads_wide = not self._is_unaffected(entry, version)
        return new

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
        if entry.page is not None:
            size += entry.page.size
    return size


async def _answer(result: Result) -> Answer:
    body = result.to_json()
    return Answer(result, body, await _in_thread_if_long(_etag, body))


async def _in_thread_if_long(transform: Callable[[bytes], Transformed], body: bytes) -> Transformed:
    if len(body) > _LONG_BYTES:
        return await asyncio.to_thread(transform, body)
    return transform(body)


def _compress(body: bytes) -> bytes:
    return zlib.compress(body, _FASTEST, _GZIP)


def _etag(body: bytes) -> str:
    return f'W/"{hashlib.sha256(body).hexdigest()[:_ETAG_DIGITS]}"'
