"""The pool of connections: session settings, life, and what a failure of the driver means."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import asyncpg

from audit.deadlines import Deadline, DeadlineExceeded
from audit.dsn import Dsn, parse
from audit.errors import Invalid, Malformed, Problem, TimedOut, Unavailable
from audit.postgres import statements
from audit.postgres.sessions import Servers, Session, UnsuitableDatabase
from audit.settings import Settings
from audit.telemetry.metrics import TRANSACTION, Metrics
from audit.telemetry.tracing import Traces

if TYPE_CHECKING:
    Pool = asyncpg.Pool[asyncpg.Record]
    Connection = asyncpg.pool.PoolConnectionProxy[asyncpg.Record]


#: What the network may take beside the statement's own time, which the server keeps.
_NETWORK_SECONDS = 2
_MIGRATIONS_SECONDS = 5
#: Connections on their way back to the pool whose users have left.
_returning: set[asyncio.Future[None]] = set()
#: On a standby, its recovery goes first; elsewhere, another transaction.
_CONFLICTS: Final = (asyncpg.SerializationError, asyncpg.DeadlockDetectedError)
_GONE: Final = (
    asyncpg.InvalidCachedStatementError,
    asyncpg.OutdatedSchemaCacheError,
    asyncpg.UndefinedColumnError,
    asyncpg.UndefinedFunctionError,
    asyncpg.UndefinedObjectError,
    asyncpg.UndefinedTableError,
)
#: PostgreSQL does not translate these.
_GONE_INTERNALLY: Final = ("cache lookup failed", "could not open relation with OID")
_Result = TypeVar("_Result")
_noted: ContextVar[set[str] | None] = ContextVar("noted", default=None)


def note_statements() -> set[str]:
    """Return a set that gets the names of the statements run from here on, in this context."""
    names: set[str] = set()
    _noted.set(names)
    return names


class _Session(Session):
    """A connection that counts its statements and gives them their time.

    Its release costs no round trip: nothing here sets state of a session.
    """

    servers: Servers
    metrics: Metrics
    traces: Traces
    deadline: Deadline
    #: asyncpg's own: the outermost transaction that it believes to be open.
    _top_xact: object

    async def reset(self, *, timeout: float | None = None) -> None:  # noqa: ASYNC109 - asyncpg's
        # After a BEGIN that failed, asyncpg takes each later transaction for a nested one.
        if self._top_xact is not None or self.is_in_transaction():
            await super().reset(timeout=timeout)

    def get_reset_query(self) -> str:
        return ""

    async def fetch(self, query: str, *values: Any, **options: Any) -> Any:
        run = super().fetch
        return await self._watched(query, lambda: run(query, *values, **options))

    async def fetchrow(self, query: str, *values: Any, **options: Any) -> Any:
        run = super().fetchrow
        return await self._watched(query, lambda: run(query, *values, **options))

    async def fetchval(self, query: str, *values: Any, **options: Any) -> Any:
        run = super().fetchval
        return await self._watched(query, lambda: run(query, *values, **options))

    async def execute(self, query: str, *values: Any, **options: Any) -> str:
        run = super().execute
        return await self._watched(query, lambda: run(query, *values, **options))

    async def _watched(self, query: str, run: Callable[[], Awaitable[_Result]]) -> _Result:
        name = statements.name_of(query)
        noted = _noted.get()
        if noted is not None:
            noted.add(name or TRANSACTION)
        # A COMMIT that failed must never be sent again: the second one would succeed.
        is_whole = name is not None and not self.is_closed() and not self.is_in_transaction()
        failed = True
        started = time.perf_counter()
        try:
            try:
                result = await self.deadline.run(run())
            except (asyncpg.PostgresError, asyncpg.InternalClientError) as failure:
                if not await self._can_run_again(failure, is_whole=is_whole):
                    raise
                result = await self._run_again(run)
            failed = False
            return result
        finally:
            self.metrics.statement(
                name or TRANSACTION, time.perf_counter() - started, failed=failed
            )

    async def _can_run_again(self, failure: Exception, *, is_whole: bool) -> bool:
        """Return whether a second attempt may succeed, and do what it needs.

        A statement that is a transaction of its own has had no effect if PostgreSQL reports that it
        failed.

        Raises:
            StaleSchema: the same holds for the transaction around the statement.
        """
        if isinstance(failure, asyncpg.ReadOnlySQLTransactionError):
            self.servers.note_refused_write(self)
        if self.is_closed():
            return False
        if _is_stale(failure):
            await self.reload_schema_state()
            if self.is_in_transaction():
                raise StaleSchema(
                    "the database is not migrated, or its schema has just changed",
                    retry_after_seconds=1,
                ) from failure
            return is_whole
        return is_whole and isinstance(failure, _CONFLICTS)

    async def _run_again(self, run: Callable[[], Awaitable[_Result]]) -> _Result:
        try:
            return await self.deadline.run(run())
        except _CONFLICTS as failure:
            raise Unavailable(
                "the database has cancelled the statement twice in favour of others",
                retry_after_seconds=1,
            ) from failure
        except asyncpg.InternalServerError as failure:
            if not _is_stale(failure):
                raise
            self.terminate()  # a function of the session may remember what is gone
            raise _silent() from failure


class _TracedSession(_Session):
    """A connection whose statements are spans, too."""

    async def _watched(self, query: str, run: Callable[[], Awaitable[_Result]]) -> _Result:
        with self.traces.statement(statements.name_of(query) or TRANSACTION):
            return await super()._watched(query, run)


class StaleSchema(Unavailable):
    """The session remembered a schema that is gone; it has forgotten it, and can be asked again."""


class NotGranted(Unavailable):
    """The role that we are in the database may not do this."""


@asynccontextmanager
async def open_pool(
    settings: Settings, dsn: str, metrics: Metrics | None = None, traces: Traces | None = None
) -> AsyncIterator[Pool]:
    """Open `settings.pool_size` connections and close them at the end.

    Raises:
        Invalid: the DSN cannot be read or has a parameter that is not supported.
        Unavailable: the database does not let us in.
    """
    metrics = metrics or Metrics(statements=statements.names())
    deadline = Deadline(settings.statement_timeout_seconds + _NETWORK_SECONDS)
    address = read_dsn(dsn)
    servers = Servers(
        address, _session_settings(settings), seconds=settings.acquire_timeout_seconds
    )

    async def begin(session: asyncpg.Connection[asyncpg.Record]) -> None:
        assert isinstance(session, _Session)  # noqa: S101 - as the pool is told
        session.servers = servers
        session.metrics = metrics
        session.deadline = deadline
        if traces:
            session.traces = traces

    with driver_errors(), _connecting():
        pool = await asyncpg.create_pool(
            connect=cast("Any", servers.connect),
            init_size=settings.pool_size,
            # A connection that is lost is made anew when it is needed, not again and again before.
            min_size=0,
            max_size=settings.pool_size,
            connection_class=_TracedSession if traces else _Session,
            init=begin,
            max_inactive_connection_lifetime=0,
        )
    servers.pool = pool
    moving = asyncio.create_task(servers.keep_on_writer())
    try:
        with driver_errors(), _connecting():
            await servers.require_sessions(pool)
        yield pool
    finally:
        moving.cancel()
        # A database that is gone has closed its connections for us.
        with suppress(OSError, asyncpg.InterfaceError):
            async with asyncio.timeout(settings.statement_timeout_seconds):
                await pool.close()  # it waits for statements under way


def read_dsn(text: str) -> Dsn:
    """Return what a DSN means.

    Raises:
        Invalid: it cannot be read, or has a parameter that is not supported.
    """
    try:
        return parse(text)
    except ValueError as refused:
        raise Invalid(f"dsn: {refused}") from None


def _session_settings(settings: Settings) -> dict[str, str]:
    """Return the settings of PostgreSQL that each session has."""
    return {
        # sql/ leans on this: `$1 IS NULL OR …` is folded away only in a custom plan.
        "plan_cache_mode": "force_custom_plan",
        "jit": "off",
        "timezone": "UTC",
        "synchronous_commit": settings.synchronous_commit,
        "default_transaction_isolation": "read committed",
        "statement_timeout": f"{settings.statement_timeout_seconds * 1000:.0f}",
        "idle_in_transaction_session_timeout": "60000",
    }


async def fetch_row(connection: Connection, statement: str, *values: object) -> asyncpg.Record:
    """Run a statement that always gives one row."""
    row = await connection.fetchrow(statement, *values)
    assert row is not None  # noqa: S101 - such a statement is an aggregate or a function
    return row


@asynccontextmanager
async def acquired(
    pool: Pool, deadline: Deadline, metrics: Metrics | None = None
) -> AsyncIterator[Connection]:
    """Take a connection for a while, and wait for one at most until the deadline.

    Whoever is cancelled leaves at once: that the server cancels the statement is waited for in the
    background, and a connection that does not come back from it is replaced by a new one.

    Raises:
        Unavailable: no connection is free in time, or the database does not answer.
    """
    with driver_errors():
        try:
            with _connecting(), metrics.waiting if metrics else nullcontext():
                connection = await deadline.run(pool.acquire())
        except DeadlineExceeded as busy:
            raise Unavailable(
                "all connections to the database are busy", retry_after_seconds=1
            ) from busy
        has_left = False
        try:
            with metrics.in_use if metrics else nullcontext():
                yield connection
        except (Exception, asyncio.CancelledError) as failure:
            has_left = True
            is_gone = _is_gone(connection)
            returning = asyncio.ensure_future(pool.release(connection, timeout=deadline.seconds))
            _returning.add(returning)
            returning.add_done_callback(_returned)
            if isinstance(failure, asyncpg.InterfaceError | asyncpg.InternalClientError):
                if is_gone:
                    raise _silent() from failure
                raise RuntimeError("the driver is used wrongly") from failure
            raise
        finally:
            if not has_left:
                await pool.release(connection, timeout=deadline.seconds)


def _is_gone(connection: Connection) -> bool:
    try:
        return connection.is_closed()
    except asyncpg.InterfaceError:
        return True  # the pool has taken it back


def _returned(returning: asyncio.Future[None]) -> None:
    _returning.discard(returning)
    if not returning.cancelled():
        returning.exception()  # it has cost the connection; the pool makes another


def _is_stale(failure: Exception) -> bool:
    """Whether the session may remember tables, types or functions that were made anew since."""
    return isinstance(failure, _GONE) or (
        isinstance(failure, asyncpg.InternalServerError)
        and str(failure).startswith(_GONE_INTERNALLY)
    )


def server_of(connection: Connection) -> str:
    """Name the server that a connection is on; it differs between two starts of one."""
    server: str = cast("Any", connection).server
    return server


def _silent() -> Unavailable:
    return Unavailable("the database does not answer", retry_after_seconds=1)


@contextmanager
def _connecting() -> Iterator[None]:
    """Whatever goes wrong before there is a session, we are not let in."""
    try:
        yield
    except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as failure:
        raise _silent() from failure


@contextmanager
def driver_errors() -> Iterator[None]:
    """Turn what asyncpg raises into the Problem that it means to a caller."""
    try:
        yield
    except (asyncpg.PostgresError, OSError) as failure:
        problem = _meaning(failure)
        if problem is None:
            raise
        raise problem from failure


def _meaning(failure: Exception) -> Problem | None:  # noqa: PLR0911 - a table
    match failure:
        case asyncpg.QueryCanceledError():
            return TimedOut("the query ran into its time limit; ask for less, or narrow the time")
        case asyncpg.OutOfMemoryError():
            return Unavailable(
                "the database has no memory left, or no room for locks on so many partitions",
                retry_after_seconds=1,
            )
        case asyncpg.DiskFullError():
            return Unavailable("the database has no room left", retry_after_seconds=10)
        case asyncpg.CheckViolationError(constraint_name="tasks_length"):
            return Invalid("a task is over 256 MiB when it is written as JSON")
        case asyncpg.DataError() | asyncpg.StatementTooComplexError():
            return Malformed("a value cannot be stored: it has characters or numbers out of range")
        case (
            OSError()
            | asyncpg.PostgresConnectionError()
            | asyncpg.InvalidAuthorizationSpecificationError()
            | asyncpg.InvalidCatalogNameError()
            | asyncpg.InsufficientResourcesError()
            | asyncpg.OperatorInterventionError()
            | asyncpg.LockNotAvailableError()
            | asyncpg.IdleInTransactionSessionTimeoutError()
            | asyncpg.ReadOnlySQLTransactionError()
            # The recovery of a standby has ended the session, too.
            | asyncpg.SerializationError()
        ):
            return _silent()
        case asyncpg.InvalidSQLStatementNameError() | asyncpg.DuplicatePreparedStatementError():
            return Unavailable(
                "the connection pooler in front of the database does not keep sessions",
                retry_after_seconds=10,
            )
        case asyncpg.InsufficientPrivilegeError():
            return NotGranted(
                "the role of the service in the database may not do this", retry_after_seconds=10
            )
        case (
            asyncpg.UndefinedTableError()
            | asyncpg.UndefinedObjectError()
            | asyncpg.UndefinedFunctionError()
            | asyncpg.UndefinedColumnError()
        ):
            return Unavailable("the database is not migrated", retry_after_seconds=10)
    return None


def migrations_on_disk() -> list[str]:
    """Return the names of all migrations, in their order."""
    return sorted(
        file.name.removesuffix(".sql")
        for file in statements.folder("migrations").iterdir()
        if file.name.endswith(".sql") and not file.name.endswith(".rollback.sql")
    )


class SchemaNotCurrent(Unavailable):
    """The database lacks migrations, and applying them was not asked for."""


async def require_current(pool: Pool) -> None:
    """Check that the database can store all texts, and has every migration.

    Raises:
        UnsuitableDatabase: its encoding is not UTF8.
        SchemaNotCurrent: it lacks migrations.
    """
    async with acquired(pool, Deadline(_MIGRATIONS_SECONDS)) as connection:
        require_utf8(connection.get_settings().server_encoding)
    pending = await pending_migrations(pool)
    if pending:
        raise SchemaNotCurrent(
            f"the database lacks migrations: {', '.join(pending)}; run `audit migrate`,"
            " or serve with --migrate"
        )


def require_utf8(encoding: str | None) -> None:
    """Raise UnsuitableDatabase if it is the encoding of a database that cannot store all texts."""
    if encoding != "UTF8":
        raise UnsuitableDatabase(
            f"the encoding of the database is {encoding}; it must be UTF8:"
            " CREATE DATABASE … TEMPLATE template0 ENCODING 'UTF8'"
        )


async def pending_migrations(pool: Pool, timeout_seconds: float = _MIGRATIONS_SECONDS) -> list[str]:
    """Return the migrations that the database lacks, in their order.

    Raises:
        Unavailable: the database does not answer.
    """
    async with acquired(pool, Deadline(timeout_seconds)) as connection:
        try:
            rows = await connection.fetch(statements.LIST_MIGRATIONS)
        except asyncpg.UndefinedTableError:
            rows = []
    applied = {row["migration_id"] for row in rows}
    return [name for name in migrations_on_disk() if name not in applied]
