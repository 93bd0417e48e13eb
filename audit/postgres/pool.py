"""Connection pools: how they are opened, how a statement runs, and how a connection is acquired."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import asyncpg

from audit.deadlines import Deadline, DeadlineExceeded
from audit.dsn import Dsn, parse
from audit.errors import Invalid, Unavailable
from audit.postgres import statements
from audit.postgres.failures import (
    CONFLICTS,
    StaleSchema,
    cancelled,
    connecting,
    driver_errors,
    is_stale,
    no_answer,
)
from audit.postgres.sessions import Place, Server, Servers, Session
from audit.postgres.statements import Statement
from audit.settings import Settings
from audit.telemetry.metrics import TRANSACTION, Metrics
from audit.telemetry.tracing import Traces

if TYPE_CHECKING:
    Pool = asyncpg.Pool[asyncpg.Record]
    Connection = asyncpg.pool.PoolConnectionProxy[asyncpg.Record]

#: PostgreSQL limits the time of a statement. The client waits for this much longer.
_NETWORK_SECONDS: Final = 2
#: How long a connection to a standby stays open after a read.
_IDLE_SECONDS: Final = 300

_statements_run: Final[ContextVar[set[str] | None]] = ContextVar("statements_run", default=None)


def note_statements() -> set[str]:
    """Return a set that receives the names of the statements run in this context from now on."""
    names: set[str] = set()
    _statements_run.set(names)
    return names


def add_statements(names: Iterable[str]) -> None:
    """Note statements that were run in another context, on behalf of this one."""
    noted = _statements_run.get()
    if noted is not None:
        noted.update(names)


@dataclass(frozen=True)
class _Shared:
    """What the sessions of a pool share."""

    servers: Servers
    deadline: Deadline
    metrics: Metrics
    traces: Traces | None
    #: Releases of connections that run in the background.
    releases: set[asyncio.Future[None]] = field(default_factory=set)


class _PooledSession(Session):
    """A session that measures its statements, limits their time, and repeats some of them.

    No statement changes the state of its session, so a release needs no reset and no round trip.
    """

    shared: _Shared
    #: An attribute of asyncpg: the outermost transaction that it believes to be open.
    _top_xact: object
    #: Whether a statement has failed or was cancelled since the session left the pool.
    _has_failed = False

    async def reset(self, *, timeout: float | None = None) -> None:  # noqa: ASYNC109 - asyncpg's
        # If a BEGIN failed, asyncpg would begin every later transaction as a nested one.
        if self._top_xact is not None or self.is_in_transaction():
            await super().reset(timeout=timeout)
        elif self._has_failed:
            # A statement that is cancelled between its preparation and its execution leaves its
            # transaction open, with all locks. The next query ends it.
            await self.execute(statements.END_STATEMENT)
        self._has_failed = False

    def get_reset_query(self) -> str:
        return ""

    async def fetch(self, query: str, *values: Any, **options: Any) -> Any:
        return await self._run(super().fetch, query, *values, **options)

    async def fetchrow(self, query: str, *values: Any, **options: Any) -> Any:
        return await self._run(super().fetchrow, query, *values, **options)

    async def fetchval(self, query: str, *values: Any, **options: Any) -> Any:
        return await self._run(super().fetchval, query, *values, **options)

    async def execute(self, query: str, *values: Any, **options: Any) -> Any:
        return await self._run(super().execute, query, *values, **options)

    async def copy_from_query(self, query: str, *values: Any, **options: Any) -> Any:
        return await self._run(super().copy_from_query, query, *values, **options)

    async def _run(
        self, method: Callable[..., Awaitable[Any]], query: str, *values: Any, **options: Any
    ) -> Any:
        name, text, is_ours = TRANSACTION, query, False
        if isinstance(query, Statement):
            name, text, is_ours = query.name, query.text, True
        run = partial(method, text, *values, **options)
        noted = _statements_run.get()
        if noted is not None:
            noted.add(name)
        traces = self.shared.traces
        failed = True
        started = time.perf_counter()
        try:
            with traces.statement(name) if traces else nullcontext():
                try:
                    result = await self.shared.deadline.run(run())
                except (asyncpg.PostgresError, asyncpg.InternalClientError) as failure:
                    if not await self._can_repeat(failure, is_ours=is_ours):
                        raise
                    result = await self._repeat(run)
            failed = False
            return result
        finally:
            self._has_failed = self._has_failed or failed
            seconds = time.perf_counter() - started
            self.shared.metrics.statement(name, seconds, failed=failed)

    async def _can_repeat(self, failure: Exception, *, is_ours: bool) -> bool:
        """Prepare a second attempt, and return whether it may succeed.

        `is_ours` is false for the statements that begin and end transactions. A failed COMMIT must
        not be repeated, because the second one would succeed.

        Raises:
            StaleSchema: the transaction around the statement may succeed if it is repeated.
        """
        if isinstance(failure, asyncpg.ReadOnlySQLTransactionError):
            self.shared.servers.note_refused_write(self)
        if self.is_closed():
            return False
        # A statement outside of a transaction had no effect if PostgreSQL reports that it failed.
        is_whole = is_ours and not self.is_in_transaction()
        if is_stale(failure):
            await self.reload_schema_state()
            if self.is_in_transaction():
                raise StaleSchema(
                    "the database is not migrated, or its schema has just changed",
                    retry_after_seconds=1,
                ) from failure
            return is_whole
        return is_whole and isinstance(failure, CONFLICTS)

    async def _repeat(self, run: Callable[[], Awaitable[Any]]) -> Any:
        try:
            return await self.shared.deadline.run(run())
        except CONFLICTS as failure:
            raise cancelled() from failure
        except asyncpg.InternalServerError as failure:
            if not is_stale(failure):
                raise
            self.terminate()  # a function may keep the old schema for as long as its session lives
            raise no_answer() from failure


@asynccontextmanager
async def open_pool(
    settings: Settings,
    dsn: str | Dsn,
    metrics: Metrics | None = None,
    traces: Traces | None = None,
    *,
    idle_seconds: float | None = None,
) -> AsyncIterator[Pool]:
    """Open `settings.pool_size` connections and close them at the end.

    With `idle_seconds`, each connection is opened when it is needed, and closed when it has not
    been used for that long. Then the database does not have to answer when the pool is opened.

    Raises:
        Invalid: the DSN cannot be read or has a parameter that is not supported.
        Unavailable: the service cannot connect to the database.
    """
    servers = Servers(
        read_dsn(dsn) if isinstance(dsn, str) else dsn,
        _session_settings(settings),
        seconds=settings.acquire_timeout_seconds,
    )
    shared = _Shared(
        servers,
        Deadline(settings.statement_timeout_seconds + _NETWORK_SECONDS),
        metrics or Metrics(statements=statements.NAMES),
        traces,
    )

    async def share(session: asyncpg.Connection[asyncpg.Record]) -> None:
        cast("_PooledSession", session).shared = shared

    with driver_errors(), connecting():
        pool = await asyncpg.create_pool(
            connect=cast("Any", servers.connect),
            init_size=settings.pool_size if idle_seconds is None else 0,
            # A lost connection is replaced when it is needed. The pool does not retry before.
            min_size=0,
            max_size=settings.pool_size,
            connection_class=_PooledSession,
            init=share,
            max_inactive_connection_lifetime=idle_seconds or 0,
        )
    servers.pool = pool
    moving = asyncio.create_task(servers.keep_on_writer())
    try:
        if idle_seconds is None:
            with driver_errors(), connecting():
                await servers.require_sessions(pool)
        yield pool
    finally:
        moving.cancel()
        # `close` waits for running statements, and raises if the database is gone.
        with suppress(OSError, asyncpg.InterfaceError):
            async with asyncio.timeout(settings.statement_timeout_seconds):
                await pool.close()


class Pools(NamedTuple):
    """The pool for everything, and those of the standbys for reading."""

    writing: Pool
    reading: Mapping[str, Pool]
    """By the host and port of the standby."""


@asynccontextmanager
async def open_pools(
    settings: Settings, dsn: str, metrics: Metrics, traces: Traces | None = None
) -> AsyncIterator[Pools]:
    """Open the pool of a DSN, and one for each host of `read_dsn`, which need not answer yet.

    Raises:
        Unavailable: the service cannot connect to the database.
    """
    async with AsyncExitStack() as stack:
        writing = await stack.enter_async_context(open_pool(settings, dsn, metrics, traces))
        reading = {}
        if settings.read_dsn is not None:
            of_standby = settings.model_copy(update={"pool_size": settings.standby_pool_size})
            for host in read_dsn(settings.read_dsn.get_secret_value()).each_host():
                pool = open_pool(of_standby, host, metrics, traces, idle_seconds=_IDLE_SECONDS)
                reading[str(host.hosts[0])] = await stack.enter_async_context(pool)
        yield Pools(writing, reading)


def read_dsn(text: str) -> Dsn:
    """Parse a DSN.

    Raises:
        Invalid: it cannot be read, or has a parameter that is not supported.
    """
    try:
        return parse(text)
    except ValueError as error:
        raise Invalid(f"dsn: {error}") from None


def _session_settings(settings: Settings) -> dict[str, str]:
    """Return the settings of PostgreSQL for each session."""
    return {
        # The statements in sql/ need it: only a custom plan removes `$1 IS NULL OR …`.
        "plan_cache_mode": "force_custom_plan",
        "jit": "off",
        "timezone": "UTC",
        "synchronous_commit": settings.synchronous_commit,
        "default_transaction_isolation": "read committed",
        "statement_timeout": f"{settings.statement_timeout_seconds * 1000:.0f}",
        "idle_in_transaction_session_timeout": "60000",
    }


@asynccontextmanager
async def acquired(
    pool: Pool,
    deadline: Deadline,
    metrics: Metrics | None = None,
    note: Callable[[Server], None] = lambda _: None,
) -> AsyncIterator[Connection]:
    """Acquire a connection within the deadline, and release it at the end.

    `note` gets the server of the connection.

    If the block fails or is cancelled, the connection is released in the background, because the
    pool first waits until PostgreSQL has cancelled the statement. If that takes too long, the pool
    replaces the connection.

    Raises:
        Unavailable: no connection becomes free in time, or the database does not answer.
    """
    with driver_errors():
        try:
            with connecting(), metrics.waiting if metrics else nullcontext():
                connection = await deadline.run(pool.acquire())
        except DeadlineExceeded as exceeded:
            raise Unavailable(
                "all connections to the database are busy", retry_after_seconds=1
            ) from exceeded
        session = cast("_PooledSession", connection)
        releases = session.shared.releases
        note(session.known)
        try:
            with metrics.in_use if metrics else nullcontext():
                yield connection
        except BaseException as failure:
            is_closed = _is_closed(connection)
            release = asyncio.ensure_future(pool.release(connection, timeout=deadline.seconds))
            releases.add(release)
            release.add_done_callback(releases.discard)
            release.add_done_callback(_ignore)
            if isinstance(failure, asyncpg.InterfaceError | asyncpg.InternalClientError):
                if is_closed:
                    raise no_answer() from failure
                raise RuntimeError("the driver is used wrongly") from failure
            raise
        await pool.release(connection, timeout=deadline.seconds)


def _is_closed(connection: Connection) -> bool:
    try:
        return connection.is_closed()
    except asyncpg.InterfaceError:
        return True  # the pool has taken it back


def _ignore(release: asyncio.Future[None]) -> None:
    """Mark the exception of a release as seen. The pool has then dropped the connection."""
    if not release.cancelled():
        release.exception()


async def fetch_row(
    connection: Connection, statement: Statement, /, *values: object, **named: object
) -> asyncpg.Record:
    """Run a statement that always returns one row, with named parameters if it has names."""
    row = await connection.fetchrow(statement, *values, *statement.values(named))
    assert row is not None  # noqa: S101 - such a statement is an aggregate or a function
    return row


async def fetch_rows(
    connection: Connection, statement: Statement, /, **named: object
) -> list[asyncpg.Record]:
    """Run a statement with named parameters."""
    return await connection.fetch(statement, *statement.values(named))


async def copy_rows(
    connection: Connection,
    statement: Statement,
    write: Callable[[bytes], Awaitable[None]],
    options: Mapping[str, object],
    /,
    **named: object,
) -> None:
    """Run a statement by COPY, and pass its rows as text to `write`, several at a time.

    The text of each call ends with a whole row. PostgreSQL waits while `write` runs, so at most the
    rows of one call are in memory. `options` are those of COPY.
    """
    values = statement.values(named)
    await connection.copy_from_query(statement, *values, output=write, **options)  # type: ignore[arg-type]


def server_of(connection: Connection) -> str:
    """Return the identity of the server that a connection is on. A restart changes it."""
    return cast("_PooledSession", connection).server


def cluster_of(connection: Connection) -> str:
    """Return the identity of the cluster that a connection is on."""
    return cast("_PooledSession", connection).known.cluster


def replayed_by(connection: Connection) -> Place | None:
    """Return up to where the standby of a connection has replayed the WAL, if that is known.

    A session ends with its server, so what it knows stays true for as long as it lives. A standby
    that starts again may show an earlier state than before.
    """
    return cast("_PooledSession", connection).replayed


def note_replayed(connection: Connection, place: Place) -> None:
    """Note up to where the standby of a connection has replayed the WAL."""
    cast("_PooledSession", connection).note_replayed(place)
