"""Applies and rolls back migrations with yoyo.

yoyo records a migration in a second transaction, after the one that applies it. If it is killed in
between, it applies the migration again. Here both happen in one transaction. yoyo's lock is a row,
which a killed process leaves behind. Here an advisory lock, which ends with its session, is used.
Only commands use this module. The service only reads which migrations are applied.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import os
import ssl
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import psycopg
import yoyo
from psycopg.rows import dict_row
from yoyo.backends.base import DatabaseBackend
from yoyo.backends.core.postgresql import PostgresqlPsycopgBackend
from yoyo.connections import DatabaseURI
from yoyo.migrations import Migration, MigrationList, default_migration_table

from audit.dsn import Dsn
from audit.errors import Invalid, ReadOnly, Unavailable
from audit.postgres import statements
from audit.postgres.failures import read_only
from audit.postgres.pool import open_pool, read_dsn
from audit.postgres.schema import migrations_on_disk, require_utf8
from audit.resources import folder
from audit.settings import Settings

#: While a migration waits for a lock, all later users of the table wait behind it. So it waits for
#: less than `deadlock_timeout`, is rolled back, and runs again after a pause.
_SETTINGS = {
    "lock_timeout": "200ms",
    "statement_timeout": "15min",
    "client_min_messages": "warning",
    "timezone": "UTC",
    "synchronous_commit": "on",
}
_PAUSE_SECONDS = 0.3
_LOCK_SECONDS = 5.0
_CONNECT_SECONDS = "10"

_IN_USE = (
    f"a table that the migration changes was in use for {_LOCK_SECONDS:.0f} s; pg_stat_activity"
    " shows which transactions are open: end them, or wait for them, and run the command again"
)
_AS_OWNER = "run as the owner of the database"


@dataclass(frozen=True, slots=True)
class Migrated:
    """A migration, and whether it is applied."""

    name: str
    applied: bool


def status(dsn: str) -> list[Migrated]:
    """Return all migrations in their order. This writes nothing, so a standby can be asked."""
    with _connected(dsn) as backend, backend.connection.cursor() as cursor:
        try:
            applied = {name for (name,) in cursor.execute(statements.LIST_MIGRATIONS)}
        except psycopg.errors.UndefinedTable:
            applied = set()
    return [Migrated(name, name in applied) for name in migrations_on_disk()]


def apply(dsn: str, to: str | None = None) -> list[str]:
    """Apply the missing migrations up to `to`, and return their names.

    A standby gets them from its primary. There is nothing to do on one that has all.

    Raises:
        Invalid: there is no migration `to`.
        ReadOnly: migrations are missing, and the server accepts no writes.
        Unavailable: the database does not answer, or refuses.
    """
    try:
        return _apply(dsn, to)
    except ReadOnly:
        if all(migration.applied for migration in status(dsn)):
            return []
        raise


def _apply(dsn: str, to: str | None) -> list[str]:
    with _backend(dsn) as (backend, migrations):
        wanted = _up_to(migrations, to)
        missing = [m for m in backend.to_apply(migrations) if m.id in wanted]
        for migration in missing:
            _run(backend, migration, "apply")
        return [migration.id for migration in missing]


def roll_back(dsn: str, to: str | None = None) -> list[str]:
    """Roll back all migrations after `to`, or only the last one, and return their names.

    Raises:
        Invalid: there is no migration `to`.
        Unavailable: the database does not answer, or refuses.
    """
    with _backend(dsn) as (backend, migrations):
        applied = list(backend.to_rollback(migrations))
        kept = _up_to(migrations, to)
        surplus = applied[:1] if to is None else [m for m in applied if m.id not in kept]
        for migration in surplus:
            _run(backend, migration, "rollback")
        return [migration.id for migration in surplus]


def _run(backend: DatabaseBackend, migration: Migration, direction: str) -> None:
    """Apply a migration, or roll it back, as soon as the tables that it changes are not in use.

    Raises:
        Unavailable: a transaction has used one of them for the whole time.
    """
    ends_at = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            with backend.transaction():
                migration.process_steps(backend, direction)
                backend.log_migration(migration, direction)
                mark = backend.mark_one if direction == "apply" else backend.unmark_one
                mark(migration, log=False)
                return
        except psycopg.errors.LockNotAvailable:
            if time.monotonic() > ends_at:
                raise Unavailable(_IN_USE) from None
        time.sleep(_PAUSE_SECONDS)


def grant(dsn: str, serving: Iterable[str], reading: Iterable[str]) -> None:
    """Grant roles the rights to serve or only to read, and revoke all their other rights.

    This happens in one transaction. It is needed again after each `apply`.

    Raises:
        Invalid: a role does not exist.
        Unavailable: a role is not bound by grants, or we are not allowed to grant.
    """
    with _backend(dsn) as (backend, _), backend.transaction():
        cursor = psycopg.RawCursor(backend.connection)
        try:
            for role in serving:
                cursor.execute(statements.GRANT_SERVING, [role])
            for role in reading:
                cursor.execute(statements.GRANT_READING, [role])
        except psycopg.errors.UndefinedObject as failure:
            raise Invalid(str(failure.diag.message_primary)) from None


def _up_to(migrations: MigrationList, to: str | None) -> set[str]:
    names = [migration.id for migration in migrations]
    if to is None:
        return set(names)
    if to not in names:
        raise Invalid(f"no migration is named {to}; there are {', '.join(names)}")
    return set(names[: names.index(to) + 1])


@contextlib.contextmanager
def _backend(text: str) -> Iterator[tuple[DatabaseBackend, MigrationList]]:
    """Connect to migrate, and wait until no other process migrates."""
    _set_user_name()
    migrations = yoyo.read_migrations(str(folder("migrations")))
    with _connected(text) as backend:
        _require_owner(backend.connection)
        backend.init_database()
        backend.execute(statements.LOCK_MIGRATIONS)
        backend.break_lock()
        yield backend, migrations


@contextlib.contextmanager
def _connected(text: str) -> Iterator[DatabaseBackend]:
    """Connect, and turn every failure of the database into Unavailable."""
    _set_system_certificates()
    try:
        with PostgresqlPsycopgBackend(
            _yoyo_uri(read_dsn(text)), default_migration_table
        ) as backend:
            # PgBouncer refuses these as startup options.
            psycopg.RawCursor(backend.connection).execute(
                statements.BEGIN_SESSION, [list(_SETTINGS), list(_SETTINGS.values())]
            )
            _require_session(text, backend.connection)
            require_utf8(backend.connection.info.parameter_status("server_encoding"))
            yield backend
    except psycopg.errors.ReadOnlySqlTransaction:
        raise read_only() from None
    except psycopg.Error as failure:
        if refusal := failure.diag.message_primary:
            # The messages of our own functions already say what to do.
            is_ours = failure.diag.source_function == "exec_stmt_raise"
            if isinstance(failure, psycopg.errors.InsufficientPrivilege) and not is_ours:
                refusal = f"{refusal}: {_AS_OWNER}"
            raise Unavailable(f"the database refuses: {refusal}") from None
        raise Unavailable("the database does not answer") from failure


def _require_owner(connection: psycopg.Connection) -> None:
    """Refuse a role that cannot create tables. yoyo would hide that error."""
    row = psycopg.RawCursor(connection).execute(statements.CHECK_OWNER).fetchone()
    if row is not None and not row[0]:
        schema = f"schema {row[1]}" if row[1] else "any schema of the search_path"
        raise Unavailable(f"the database refuses: permission denied for {schema}: {_AS_OWNER}")


def _require_session(text: str, connection: psycopg.Connection) -> None:
    """Behind a connection pooler, run the check of the service for poolers that share sessions."""
    row = (
        psycopg.RawCursor(connection, row_factory=dict_row)
        .execute(statements.CHECK_SESSION, [[]])
        .fetchone()
    )
    if row is None or row["pid"] != connection.info.backend_pid:
        asyncio.run(_check(text))


async def _check(text: str) -> None:
    async with open_pool(Settings.model_construct(pool_size=1), text):
        pass


def _yoyo_uri(dsn: Dsn) -> DatabaseURI:
    """Return what yoyo would parse from a URI. It passes the arguments to psycopg unchanged."""
    arguments = dsn.parameters(
        application_name=dsn["application_name"] or "task-audit migrate",
        connect_timeout=dsn["connect_timeout"] or _CONNECT_SECONDS,
    )
    return DatabaseURI("postgresql+psycopg", None, None, None, None, dsn["dbname"], arguments)


def _set_system_certificates() -> None:
    """Tell the OpenSSL of psycopg where the system has its certificates (`sslrootcert=system`)."""
    paths = ssl.get_default_verify_paths()
    if paths.cafile:
        os.environ.setdefault(paths.openssl_cafile_env, paths.cafile)
    if paths.capath:
        os.environ.setdefault(paths.openssl_capath_env, paths.capath)


def _set_user_name() -> None:
    """Set a user name for yoyo, which records it, if the user id has no name."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["LOGNAME"] = str(os.getuid())
