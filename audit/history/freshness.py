"""Versions of the history. A cached response is sent only if it is what the query returns now.

A response contains every write that was confirmed before its request, through any worker, and by
any program. The service ensures this without running the query again:

1. Triggers add an event to the event log for each task that a statement changes, in the same
   transaction. So two snapshots of one server that see the same events see the same tasks.
2. A request uses a *version* of the history, which is read by a statement that is sent after the
   request arrived. So the version includes every write that was confirmed before the request, by
   any process or program.
3. Reading a version also reads the changes since the version before: the events that the earlier
   statement did not see (`audit/history/changes.py`). The number of visible events proves that none
   is missed. If one is, if there are too many to read, or if the server is another one, all changes
   are forgotten, and no response that was computed before is sent again.
4. A response is cached under a version that was read *before* the response was computed. So the
   response may be newer than its version, but never older.
5. A later request gets this response only if no change since then may affect it. A change may do so
   if its task matched the filters of the query before or after. If there is none, the lists have
   the same tasks with the same content in both versions, and so does the response. Changes that the
   response already contains are checked too. That may drop a response that is current, but never
   keeps one that is not.
6. A window that moves with the clock also changes when a task leaves it. The service reads when the
   next one does (`sql/history/read_departure.sql`), and then another version. If no change up to
   that version may affect the response, the tasks in the window were the same all the time, so none
   of them leaves earlier. After that time the response is computed again.
7. A response is computed on the server that its version was read on. If the connection pool moves
   to another server in between, the request fails, and nothing is cached. It may also be computed
   on a standby (`audit/history/sources.py`) that has replayed the WAL of this server up to a place
   that comes after the commit of each change of the version. So rule 4 holds there too.
8. If changes affect a page of a list, the service may make the new page from the cached one and
   these changes (`audit/history/patching.py`), without running the query. It does so only if the
   cached page is of the same snapshot as its version, so that it contains no change twice. With
   the changes comes the text of each changed task, from the same snapshot as the version. On a
   standby, the snapshot is the same if it sees as many events.

A client that holds a response has the current one if its ETag is equal, since the ETag is a digest
of the body.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from datetime import datetime
from typing import Final, NamedTuple

from audit.postgres.sessions import Place

#: In the name of a snapshot on a standby: how many events it sees.
_EVENTS: Final = re.compile(r"(\d+) events ")
#: How often a request passes through the event loop between its socket and `current`.
_TURNS_TO_HERE: Final = 3
#: Versions read on one connection before it is given back, so that queries can have it.
_READS_IN_A_ROW: Final = 16


class Version(NamedTuple):
    """A state of the history."""

    number: int
    """The number of changes that this process knows of. It grows when tasks may have changed."""
    clock: datetime
    """The database's clock, rounded down to a second."""
    server: str = ""
    """The database server it was read on."""
    snapshot: str = ""
    """The snapshot it was read in. While that is the same, no task has changed."""
    log_size: int = 0
    """How many events had a position in the log: 0 to `log_size - 1`. What is not known of the
    tasks of this version yet comes with events from this position on."""
    events: int = 0
    """How many events there were, with a position or not."""
    place: Place | None = None
    """A standby that has replayed the WAL up to this place shows this version or a later one. None
    if the server is not a primary."""

    def is_of(self, snapshot: str | None) -> bool:
        """Return whether what was computed for this version, in that snapshot, is exactly of it."""
        if snapshot is None or snapshot == self.snapshot:
            return snapshot is not None
        on_standby = _EVENTS.match(snapshot)
        return on_standby is not None and int(on_standby[1]) == self.events


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
