"""What a failure of the database or of asyncpg means to the caller of the service."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import asyncpg

from audit.errors import Invalid, Malformed, Problem, ReadOnly, TimedOut, Unavailable

#: A second attempt may succeed. On a standby, these are conflicts with replication.
CONFLICTS: Final = (asyncpg.SerializationError, asyncpg.DeadlockDetectedError)
_GONE: Final = (
    asyncpg.InvalidCachedStatementError,
    asyncpg.OutdatedSchemaCacheError,
    asyncpg.UndefinedColumnError,
    asyncpg.UndefinedFunctionError,
    asyncpg.UndefinedObjectError,
    asyncpg.UndefinedTableError,
)
#: Internal errors, whose messages PostgreSQL does not translate.
_GONE_INTERNALLY: Final = ("cache lookup failed", "could not open relation with OID")


class StaleSchema(Unavailable):
    """The session used a cached schema that has changed. The cache is now empty: try again."""


class NotGranted(Unavailable):
    """The role of the service lacks a privilege in the database."""


def no_answer() -> Unavailable:
    """Return the problem for a database that does not answer."""
    return Unavailable("the database does not answer", retry_after_seconds=1)


def read_only() -> ReadOnly:
    """Return the problem for a server that accepts no writes."""
    return ReadOnly(
        "the database server accepts no writes, because it is a standby or is set to read-only",
        retry_after_seconds=1,
    )


def cancelled() -> Unavailable:
    """Return the problem for a statement that PostgreSQL cancelled, which may succeed later."""
    return Unavailable(
        "the database cancelled the statement in favour of others, or of replication",
        retry_after_seconds=1,
    )


def is_stale(failure: Exception) -> bool:
    """Return whether the session may have cached tables, types or functions that have changed."""
    return isinstance(failure, _GONE) or (
        isinstance(failure, asyncpg.InternalServerError)
        and str(failure).startswith(_GONE_INTERNALLY)
    )


@contextmanager
def connecting() -> Iterator[None]:
    """Turn every failure to connect into Unavailable."""
    try:
        yield
    except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as failure:
        raise no_answer() from failure


@contextmanager
def driver_errors() -> Iterator[None]:
    """Turn an exception of asyncpg into the Problem that it means to the caller."""
    try:
        yield
    except (asyncpg.PostgresError, OSError) as failure:
        problem = _problem(failure)
        if problem is None:
            raise
        raise problem from failure


def _problem(failure: Exception) -> Problem | None:  # noqa: C901, PLR0911 - a table
    match failure:
        case asyncpg.QueryCanceledError():
            return TimedOut("the query ran into its time limit; ask for less, or narrow the time")
        case asyncpg.OutOfMemoryError():
            return Unavailable(
                "the database is out of memory, or out of locks for the partitions of the query",
                retry_after_seconds=1,
            )
        case asyncpg.DiskFullError():
            return Unavailable("the database has no room left", retry_after_seconds=10)
        case asyncpg.DataError() | asyncpg.StatementTooComplexError():
            return Malformed("a value cannot be stored: it has characters or numbers out of range")
        case (
            asyncpg.CheckViolationError(constraint_name="tasks_length")
            | asyncpg.ProgramLimitExceededError()
        ):
            return Invalid("a task is over 256 MiB when it is written or stored as JSON")
        case (
            OSError()
            | asyncpg.PostgresConnectionError()
            | asyncpg.InvalidAuthorizationSpecificationError()
            | asyncpg.InvalidCatalogNameError()
            | asyncpg.InsufficientResourcesError()
            | asyncpg.OperatorInterventionError()
            | asyncpg.LockNotAvailableError()
            | asyncpg.IdleInTransactionSessionTimeoutError()
        ):
            return no_answer()
        case asyncpg.ReadOnlySQLTransactionError():
            return read_only()
        # Also raised if replication ends a session on a standby.
        case asyncpg.SerializationError():
            return cancelled()
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
