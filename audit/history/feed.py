"""The feed: the changes of all tasks in the order of the event log, from any position on.

A *position* is a number of events: those that a reader has passed. So it is the `n` of the event
that comes next. The sequencer gives each committed event the next number, without gaps. A reader
that continues at the position where it stopped misses no change and gets none twice.

While readers wait, each process looks at the end of the log several times a second, once for all of
them, and wakes those that the log has passed. Each reader then reads the changes that match its
filter, from its own position on. So a slow reader is only later than others: no change is stored
for it, and no connection is held for it.

A standby may be behind what a reader has read from another server. Then the reader waits, as at the
end of the log.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from audit.errors import PositionGone, TooManyFeeds
from audit.history.feed_query import ChangesQuery, FeedQuery
from audit.once import Once
from audit.postgres import statements
from audit.postgres.database import Database
from audit.postgres.failures import NotGranted
from audit.postgres.pool import fetch_row
from audit.settings import Settings
from audit.telemetry.metrics import Metrics
from audit.telemetry.throttle import Recurring

#: Events that one statement looks at. A filter may select none of them.
_MOST_SCANNED: Final = 10_000
_RETRY_AFTER_SECONDS: Final = 5
#: How often a reader that waits checks whether its key is still valid.
CHECK_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True)
class Portion:
    """Consecutive changes that match a filter, oldest first."""

    changes: list[str]
    """The JSON object of each change, as PostgreSQL wrote it."""
    positions: list[int]
    """The `n` of each change."""
    position: int
    """Where to continue: all changes before it that match are in this portion or an earlier one."""
    has_more: bool
    """Whether the log continues at `position`."""
    behind_seconds: float
    """The age of the event at `position`; 0 if the log ends there."""

    @property
    def body(self) -> bytes:
        """The body of a response, in the form of `ChangesBody`."""
        more = "true" if self.has_more else "false"
        changes = ",".join(self.changes)
        return f'{{"changes":[{changes}],"position":{self.position},"more":{more}}}'.encode()


class Feed:
    """Reads changes, and waits for new ones."""

    def __init__(
        self,
        database: Database,
        settings: Settings,
        metrics: Metrics,
        sequence: Callable[[], Awaitable[bool]],
    ) -> None:
        """`sequence` numbers a portion of the events that have no position yet.

        It returns whether none is left, or another process does it at the moment.
        """
        self._database = database
        self._metrics = metrics
        self._most_readers = settings.max_feeds
        self._look_every_seconds = settings.feed_seconds
        self._sequence = sequence
        self._may_sequence = True
        self._readers = 0
        self._reads: dict[object, Once[Portion]] = {}
        #: The size of the log at the last look, and whether the server was a standby.
        self._log_size = -1
        self._is_standby = False
        #: The readers that wait, with their positions.
        self._waiting: dict[asyncio.Future[bool], int] = {}
        self._look: asyncio.Task[None] | None = None
        self._looking = Recurring("looking for changes")
        self.is_closed = False
        """Whether readers should end after what they are doing."""

    @contextmanager
    def reader(self) -> Iterator[None]:
        """Count a reader for as long as the block runs.

        Raises:
            TooManyFeeds: there are as many readers as the setting allows.
        """
        self.require_room()
        self._readers += 1
        try:
            with self._metrics.feeds:
                yield
        finally:
            self._readers -= 1

    def require_room(self) -> None:
        """Raise TooManyFeeds if there are as many readers as the setting allows."""
        if self._readers >= self._most_readers:
            raise TooManyFeeds(
                f"{self._most_readers} readers follow the feed in this process (max_feeds)",
                retry_after_seconds=_RETRY_AFTER_SECONDS,
            )

    async def end(self) -> int:
        """Return the position after the newest change that has a number."""
        async with self._database.reading() as connection:
            row = await fetch_row(connection, statements.READ_LOG_HEAD, known=None)
        return int(row["log_size"])

    async def read(self, query: FeedQuery, position: int, *, limit: int, max_bytes: int) -> Portion:
        """Return the next changes from a position on.

        The portion ends after `limit` changes, or where `max_bytes` are exceeded, but not before
        the first change. It may have no change and still advance, past changes that do not match.
        Readers that ask for the same at the same time share one statement.

        Raises:
            PositionGone: the log ends before this position.
        """
        selected = query.changes_filter()
        key = (repr(selected), position, limit, max_bytes)
        read = self._reads.setdefault(key, Once())
        try:
            return await read.result(lambda: self._read(selected, position, limit, max_bytes))
        finally:
            if self._reads.get(key) is read:
                del self._reads[key]

    async def _read(
        self,
        selected: dict[str, object],
        position: int,
        limit: int,
        max_bytes: int,
    ) -> Portion:
        async with self._database.reading() as connection:
            row = await fetch_row(
                connection,
                statements.READ_FEED,
                first=position,
                most=limit,
                most_scanned=_MOST_SCANNED,
                max_bytes=max_bytes,
                **selected,
            )
        self._log_size, self._is_standby = row["log_size"], row["is_standby"]
        if self._is_gone(position):
            raise PositionGone(
                f"the log has {self._log_size} changes, so no reader can have reached the position"
                f" {position}: an older backup of the database was restored; read the tasks anew",
                members={"position": position, "log_size": self._log_size},
            )
        return Portion(
            row["changes"],
            row["positions"],
            max(position, row["next_position"]),
            row["next_position"] < row["log_size"],
            row["behind_seconds"],
        )

    async def poll(
        self,
        query: ChangesQuery,
        *,
        max_bytes: int,
        check: Callable[[], Awaitable[None]] | None = None,
    ) -> Portion:
        """Return the next changes that match, or an empty portion after `query.wait` seconds.

        While it waits, it calls `check` every two seconds, which may raise.

        Raises:
            PositionGone: the log ends before the position.
        """
        until = time.monotonic() + query.wait
        position = await self.end() if query.position is None else query.position
        while True:
            portion = await self.read(query, position, limit=query.limit, max_bytes=max_bytes)
            position = portion.position
            has_moved = portion.has_more
            while not has_moved:
                left = until - time.monotonic()
                if portion.changes or left <= 0 or self.is_closed:
                    return portion
                has_moved = await self.wait(position, min(left, CHECK_SECONDS))
                if check is not None:
                    await check()
            if portion.changes or time.monotonic() >= until:
                return portion

    async def wait(self, position: int, seconds: float) -> bool:
        """Wait until the log has a change at this position, or the position is gone.

        Return whether it is so.

        It returns early if `seconds` have passed, or if the feed is closed.
        """
        if self.is_closed:
            return False
        if self._has_news(position) and self._look is not None:
            return True
        loop = asyncio.get_running_loop()
        moved: asyncio.Future[bool] = loop.create_future()
        self._waiting[moved] = position
        if self._look is None:
            self._look = asyncio.create_task(self._look_while_waited_for())
        timer = loop.call_later(seconds, _resolve, moved, False)
        try:
            return await moved
        finally:
            timer.cancel()
            self._waiting.pop(moved, None)

    def close(self) -> None:
        """Wake all readers, and let them and later ones end."""
        self.is_closed = True
        for moved in self._waiting:
            _resolve(moved, False)

    async def _look_while_waited_for(self) -> None:
        """Look at the end of the log at intervals, until no reader waits."""
        try:
            while self._waiting:
                is_last = True
                with self._looking.attempt():
                    is_last = await self._look_once()
                if is_last:
                    await asyncio.sleep(self._look_every_seconds)
        finally:
            self._look = None

    async def _look_once(self) -> bool:
        """Number new events and wake the readers; return whether all events are numbered."""
        is_last = True
        if self._may_sequence:
            # The background work would do it, but at a slower pace.
            try:
                is_last = await self._sequence()
            except NotGranted:
                self._may_sequence = False
        known = max(self._waiting.values(), default=None)
        async with self._database.connection() as connection:
            row = await fetch_row(connection, statements.READ_LOG_HEAD, known=known)
        self._log_size, self._is_standby = row["log_size"], row["is_standby"]
        if row["delay_seconds"] is not None:
            self._metrics.fed(max(row["delay_seconds"], 0))
        for moved, position in self._waiting.items():
            if self._has_news(position):
                _resolve(moved, True)
        return is_last

    def _has_news(self, position: int) -> bool:
        """Return whether the log has a change at a position, or the position is gone."""
        return self._log_size > position or self._is_gone(position)

    def _is_gone(self, position: int) -> bool:
        """Return whether the log of a primary is shorter than a reader has read."""
        return self._log_size < position and not self._is_standby


def _resolve(future: asyncio.Future[bool], result: bool) -> None:
    if not future.done():
        future.set_result(result)
