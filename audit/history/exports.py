"""Exports: all tasks that match, as a file of any size, in constant memory. Knows no HTTP.

PostgreSQL writes the lines, by COPY, and waits while the reader of the export does not read. All
is read in one snapshot, one partition at a time, so that PostgreSQL never sorts more than the tasks
of one partition. The service looks at the lines only to count and to hash them.

Each export has a connection of its own, from a pool of its own. So exports take none from the
requests, however slowly they are read.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID, uuid4

import asyncpg

from audit.deadlines import Deadline
from audit.errors import ExportNotFound, Invalid, Problem, TimedOut, Unavailable
from audit.history.bar_counts import count_tasks
from audit.history.cursor import encode_export
from audit.history.export_query import ExportQuery, ExportsQuery
from audit.history.recording import UNKNOWN_AUTHOR, Author
from audit.postgres import statements
from audit.postgres.database import Database
from audit.postgres.pool import acquired, copy_rows, fetch_row
from audit.settings import Settings
from audit.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from audit.postgres.pool import Connection, Pool

log = logging.getLogger("audit")

Write = Callable[[bytes], Awaitable[None]]

_VERSION: Final = version("task-audit")
#: JSON text has no control characters, so COPY quotes no line with these.
_LINES: Final = {"format": "csv", "delimiter": "\x02", "quote": "\x01"}
_CSV: Final = {"format": "csv"}
_ID: Final = re.compile(rb'{"task_id" : "([0-9a-f-]{36})"')
#: A piece that is written is not smaller, unless it is the last one of a partition.
_LEAST_BYTES: Final = 64 * 1024
#: Before all tasks.
_NOWHERE: Final = (datetime.fromisoformat("1970-01-01T00:00:00Z"),) * 2
_SHORTEST_WAIT_SECONDS: Final = 1
_LONGEST_WAIT_SECONDS: Final = 60
_UNKNOWN_WAIT_SECONDS: Final = 10
#: How long PostgreSQL may take to end a transaction.
_ROLLBACK_SECONDS: Final = 1
#: How long the pool may take to record the exports that a stop has cut off.
_END_SECONDS: Final = 3


def export_settings(settings: Settings) -> Settings:
    """Return the settings of the pool of exports."""
    return settings.model_copy(
        update={
            "pool_size": settings.max_exports,
            "statement_timeout_seconds": settings.export_timeout_seconds,
        }
    )


class Exports:
    """Exports tasks, and reads what was recorded of earlier exports."""

    def __init__(
        self, pool: Pool, database: Database, settings: Settings, metrics: Metrics
    ) -> None:
        """`pool` has the connections of exports, opened with `export_settings`."""
        self._pool = pool
        self._database = database
        self._most = settings.max_exports
        self._seconds = settings.export_timeout_seconds
        self._patience = Deadline(settings.acquire_timeout_seconds)
        self._metrics = metrics
        #: When each export began, and the export once it is open.
        self._running: dict[object, tuple[float, Export | None]] = {}
        self._recordings: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def open(
        self, query: ExportQuery, author: Author = UNKNOWN_AUTHOR
    ) -> AsyncIterator[Export]:
        """Take a snapshot, and count the tasks in it that match.

        The export can be sent for as long as the block runs.

        Raises:
            Unavailable: too many exports run already, or the database does not answer.
            Invalid: there is no task `after`.
        """
        with self._place() as place:
            async with (
                acquired(self._pool, self._patience) as connection,
                _snapshot(connection),
            ):
                export = await self._begin(connection, query, author)
                self._running[place] = (self._running[place][0], export)
                try:
                    yield export
                finally:
                    self._ended(export)

    async def get(
        self, export_id: UUID, *, key_name: str | None = None, project_id: UUID | None = None
    ) -> bytes:
        """Return the manifest of an export as JSON.

        With a `key_name` or a `project_id`, only if it was made with this key or of this project.

        Raises:
            ExportNotFound: there is no such export.
        """
        values = statements.GET_EXPORT.values(
            {"export_id": export_id, "key_name": key_name, "project_id": project_id}
        )
        async with self._database.reading() as connection:
            row = await connection.fetchrow(statements.GET_EXPORT, *values)
        if row is None:
            raise ExportNotFound(f"no export has the id {export_id}")
        return str(row["document"]).encode()

    async def list(self, query: ExportsQuery, *, project_id: UUID | None = None) -> bytes:
        """Return a page of manifests as JSON, those of the exports that ended last first."""
        after_at, after_id = query.after(project_id)
        async with self._database.reading() as connection:
            row = await fetch_row(
                connection,
                statements.LIST_EXPORTS,
                project_id=project_id,
                after_at=after_at,
                after_id=after_id,
                limit=query.limit,
            )
        cursor = None
        if row["has_more"]:
            cursor = encode_export(row["last_at"], row["last_id"], project_id)
        return f'{{"exports":{row["exports"]},"next_cursor":{json.dumps(cursor)}}}'.encode()

    async def close(self) -> None:
        """Wait until the exports that were cut off are recorded, but not for long."""
        if self._recordings:
            await asyncio.wait(self._recordings, timeout=_END_SECONDS)

    @contextmanager
    def _place(self) -> Iterator[object]:
        """Take one of the places of this process."""
        if len(self._running) >= self._most:
            raise self._refusal()
        place = object()
        self._running[place] = (time.time(), None)
        self._note_running()
        try:
            yield place
        finally:
            del self._running[place]
            self._note_running()

    def _note_running(self) -> None:
        began = [began for began, _ in self._running.values()]
        self._metrics.exporting(len(began), min(began, default=0))

    def _refusal(self) -> Unavailable:
        waits = [export.seconds_left() for _, export in self._running.values() if export]
        seconds = min(filter(None, waits), default=_UNKNOWN_WAIT_SECONDS)
        return Unavailable(
            f"{self._most} exports are running, and no more may (max_exports)",
            retry_after_seconds=round(
                min(max(seconds, _SHORTEST_WAIT_SECONDS), _LONGEST_WAIT_SECONDS)
            ),
        )

    async def _begin(self, connection: Connection, query: ExportQuery, author: Author) -> Export:
        clock = (await fetch_row(connection, statements.READ_SNAPSHOT))["clock"]
        filtered = query.filter_values(query.window_start(clock))
        opened = await fetch_row(
            connection,
            statements.OPEN_EXPORT,
            **filtered,
            after=query.after,
            most_exports=self._most,
        )
        if not opened["is_open"]:
            raise self._refusal()
        if query.after is not None and opened["after_at"] is None:
            detail = "no task of this project has this id" if query.project_id else "no such task"
            raise Invalid(
                f"after: {detail}",
                errors=[{"field": "after", "detail": f"must be the id of a task; {detail}"}],
            )
        export = Export(self, connection, query, author, opened, filtered)
        await export.count()
        return export

    def _ended(self, export: Export) -> None:
        """Record an export that was cut off. This goes on if the request is cancelled."""
        if not export.has_begun:
            return
        self._metrics.exported(export.tasks, is_complete=export.is_complete)
        if not export.is_complete and export.export_id is not None:
            recording = asyncio.create_task(self._record_cut(export))
            self._recordings.add(recording)
            recording.add_done_callback(self._recordings.discard)

    async def _record_cut(self, export: Export) -> None:
        try:
            await self.record(export)
        except (Problem, asyncpg.PostgresError) as failure:
            log.warning(
                "the export %s, which was cut off, is not recorded: %s", export.export_id, failure
            )

    async def record(self, export: Export) -> None:
        """Record an export that has ended."""
        async with self._database.connection() as connection:
            await fetch_row(connection, statements.RECORD_EXPORT, export=export.to_json())


@asynccontextmanager
async def _snapshot(connection: Connection) -> AsyncIterator[None]:
    """Open a transaction whose statements see one snapshot, for as long as the block runs."""
    transaction = connection.transaction(isolation="repeatable_read", readonly=True)
    await transaction.start()
    try:
        yield
    finally:
        # If the reader fails at the last piece of a COPY, asyncpg cancels a statement that has
        # ended, and would wait for ever for PostgreSQL to confirm that.
        try:
            async with asyncio.timeout(_ROLLBACK_SECONDS):
                await transaction.rollback()
        except asyncio.CancelledError:
            connection.terminate()
            raise
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            connection.terminate()


class Export:
    """The tasks that match a query, in one snapshot."""

    total: int
    """How many tasks there are."""

    def __init__(
        self,
        exports: Exports,
        connection: Connection,
        query: ExportQuery,
        author: Author,
        opened: asyncpg.Record,
        filtered: dict[str, object],
    ) -> None:
        """`opened` is the row of `open_export`, and `filtered` are the values of the filter."""
        self.query = query
        self.snapshot: str = opened["snapshot"]
        self.taken_at: datetime = opened["taken_at"]
        self.export_id = uuid4() if opened["can_record"] else None
        """None if exports cannot be recorded, because the role or the server only reads."""
        self.tasks = 0
        """How many tasks were sent."""
        self.has_begun = False
        self.is_complete = False
        self._exports = exports
        self._connection = connection
        self._author = author
        self._filter: str = opened["filter"]
        self.since: str | None = json.loads(self._filter).get("since")
        """The time of the first task to match, as RFC 3339, also if the filter counts back."""
        self._values = {
            **filtered,
            "after_at": opened["after_at"],
            "after_id": query.after,
            "raw": query.raw,
        }
        places = zip(opened["since"] or (), opened["until"] or (), strict=True)
        self._places = list(places) or [_NOWHERE]
        self._began = time.monotonic()
        self._hash = hashlib.sha256()
        self._bytes = 0
        self._first: bytes | None = None
        self._last: bytes | None = None
        self._neutralised = 0

    async def count(self) -> None:
        """Count the tasks, in the snapshot."""
        if self.query.after is None:
            since = self._values["since"]
            assert since is None or isinstance(since, datetime)  # noqa: S101 - see filter_values
            self.total = await count_tasks(self._connection, self.query, since)
        else:
            self.total = (await self._measure(None, (None, None)))["tasks"]

    async def send(self, write: Write) -> None:
        """Pass the whole file to `write` in pieces that end with a line, and record the export.

        Raises:
            TimedOut: it takes longer than an export may.
        """
        self.has_begun = True
        seconds = self._exports._seconds  # noqa: SLF001 - of the same module
        try:
            async with asyncio.timeout(seconds):
                await self._copy(write)
        except TimeoutError:
            raise TimedOut(f"the export took over {seconds:g} seconds") from None
        self.is_complete = True
        if self.export_id is not None:
            try:
                await self._exports.record(self)
            except BaseException:
                self.is_complete = False
                raise

    def seconds_left(self) -> float | None:
        """Return an estimate of the seconds until the export ends; None if there is none."""
        if not self.tasks:
            return None
        return (time.monotonic() - self._began) * (self.total - self.tasks) / self.tasks

    def to_json(self) -> str:
        """Return the row to record, as a JSON object."""
        is_csv = self.query.format == "csv"
        project_id = self.query.project_id
        members: dict[str, Any] = {
            "export_id": str(self.export_id),
            "key_name": self._author.actor,
            "request_id": self._author.request_id,
            "project_id": str(project_id) if project_id else None,
            "format": self.query.format,
            "columns": self.query.shown if is_csv else None,
            "raw": self.query.raw if is_csv else None,
            "after": str(self.query.after) if self.query.after else None,
            "snapshot": self.snapshot,
            "taken_at": self.taken_at.isoformat(),
            "tasks": self.tasks,
            "bytes": self._bytes,
            "sha256": f"\\x{self._hash.hexdigest()}",
            "first_task": self._first.decode() if self._first else None,
            "last_task": self._last.decode() if self._last else None,
            "neutralised": self._neutralised if self.is_complete else None,
            "complete": self.is_complete,
            "version": _VERSION,
        }
        return f'{json.dumps(members)[:-1]}, "filter": {self._filter}}}'

    async def _copy(self, write: Write) -> None:
        is_csv = self.query.format == "csv"
        statement = statements.EXPORT_NDJSON
        options: dict[str, object] = dict(_LINES)
        if is_csv:
            statement = statements.export_csv(self.query.shown)
            options = {**_CSV, "header": True, "force_quote": self.query.quoted or None}
        has_header = is_csv

        #: PostgreSQL sends pieces of 8 KiB. To write and hash each of them takes much longer.
        pieces: list[bytes] = []
        size = 0

        async def take(piece: bytes) -> None:
            nonlocal size
            pieces.append(piece)
            size += len(piece)
            if size >= _LEAST_BYTES:
                await write_pieces()

        async def write_pieces() -> None:
            nonlocal has_header, size
            if not pieces:
                return
            written = b"".join(pieces)
            pieces.clear()
            size = 0
            await write(written)
            self._add(written, has_header=has_header)
            has_header = False

        for place in self._places:
            if is_csv and not self.query.raw:
                measured = await self._measure(self.query.shown, place)
                self._neutralised += measured["formulas"]
            await copy_rows(self._connection, statement, take, options, **self._values, place=place)
            await write_pieces()
            if is_csv:
                options["header"] = False

    def _add(self, piece: bytes, *, has_header: bool) -> None:
        """Count and hash a piece that was sent."""
        self._hash.update(piece)
        self._bytes += len(piece)
        if self.query.format == "csv":
            # What is not quoted has no line breaks, commas or quotes of the tasks.
            piece = b"".join(piece.split(b'"')[::2])
        if has_header:
            piece = piece[piece.index(b"\n") + 1 :]
        rows = piece.count(b"\n")
        if not rows:
            return
        self.tasks += rows
        self._first = self._first or self._id_of(piece[: piece.index(b"\n")])
        self._last = self._id_of(piece[piece.rfind(b"\n", 0, -1) + 1 : -1])

    def _id_of(self, line: bytes) -> bytes | None:
        """Return the id of the task of a line, in CSV without its quoted cells."""
        if self.query.format == "csv":
            if "task_id" not in self.query.shown:
                return None
            return line.split(b",")[self.query.shown.index("task_id")]
        found = _ID.match(line)
        assert found  # noqa: S101 - `task_document` begins with the id
        return found[1]

    async def _measure(
        self, columns: tuple[str, ...] | None, place: tuple[datetime | None, datetime | None]
    ) -> asyncpg.Record:
        return await fetch_row(
            self._connection,
            statements.MEASURE_EXPORT,
            **self._values,
            columns=columns,
            place=place,
        )
