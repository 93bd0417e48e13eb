"""Moves the schema with yoyo: one migrator at a time, each migration whole or not at all.

yoyo by itself commits a migration first and notes it in another transaction; killed in between, it
would run the migration again. Here both are one transaction. yoyo's own lock is a row that a killed
migrator leaves behind; here an advisory lock, which ends with its session, makes that row moot.
This module is for commands: the server only reads which migrations are applied.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import os
import ssl
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import psycopg
import yoyo
from psycopg.rows import dict_row
from yoyo.backends.base import DatabaseBackend
from yoyo.backends.core.postgresql import PostgresqlPsycopgBackend
from yoyo.connections import DatabaseURI
from yoyo.migrations import MigrationList, default_migration_table

from audit.dsn import Dsn
from audit.errors import Invalid, Unavailable
from audit.postgres import statements
from audit.postgres.pool import open_pool, read_dsn
from audit.postgres.schema import require_utf8
from audit.settings import Settings

#: A migration that waits for a lock holds up everyone behind it: it gives way instead.
_SETTINGS = {
    "lock_timeout": "5s",
    "statement_timeout": "15min",
    "client_min_messages": "warning",
    "timezone": "UTC",
    "synchronous_commit": "on",
}
_CONNECT_SECONDS = "10"

_AS_OWNER = "run as the owner of the database"


@dataclass(frozen=True, slots=True)
class Migrated:
    """One migration and whether the database has it."""

    name: str
    applied: bool


def status(dsn: str) -> list[Migrated]:
    """Return all migrations, in their order."""
    with _backend(dsn) as (backend, migrations):
        applied = set(backend.get_applied_migration_hashes())
        return [Migrated(migration.id, migration.hash in applied) for migration in migrations]


def apply(dsn: str, to: str | None = None) -> list[str]:
    """Apply what is missing, up to and including `to`; return the names of what was applied.

    Raises:
        Invalid: there is no migration `to`.
        Unavailable: the database does not answer or refuses.
    """
    with _backend(dsn) as (backend, migrations):
        wanted = _up_to(migrations, to)
        missing = [m for m in backend.to_apply(migrations) if m.id in wanted]
        for migration in missing:
            with backend.transaction():
                migration.process_steps(backend, "apply")
                backend.log_migration(migration, "apply")
                backend.mark_one(migration, log=False)
        return [migration.id for migration in missing]


def roll_back(dsn: str, to: str | None = None) -> list[str]:
    """Roll back what came after `to`, or the newest one; return the names, newest first.

    Raises:
        Invalid: there is no migration `to`.
        Unavailable: the database does not answer or refuses.
    """
    with _backend(dsn) as (backend, migrations):
        applied = list(backend.to_rollback(migrations))
        kept = _up_to(migrations, to)
        surplus = applied[:1] if to is None else [m for m in applied if m.id not in kept]
        for migration in surplus:
            with backend.transaction():
                migration.process_steps(backend, "rollback")
                backend.log_migration(migration, "rollback")
                backend.unmark_one(migration, log=False)
        return [migration.id for migration in surplus]


def grant(dsn: str, serving: Iterable[str], reading: Iterable[str]) -> None:
    """Let roles do what the service does, or only read; take from them what they had besides.

    All of it is granted, or nothing. Run it again after each `apply`.

    Raises:
        Invalid: there is no such role.
        Unavailable: grants would not bind a role, or we may not grant.
    """
    with _backend(dsn) as (backend, _), backend.transaction():
        cursor = psycopg.RawCursor(backend.connection)
        try:
            for role in serving:
                cursor.execute(statements.GRANT_SERVING, [role])
            for role in reading:
                cursor.execute(statements.GRANT_READING, [role])
        except psycopg.errors.UndefinedObject as unknown:
            raise Invalid(str(unknown.diag.message_primary)) from None


def _up_to(migrations: MigrationList, to: str | None) -> set[str]:
    names = [migration.id for migration in migrations]
    if to is None:
        return set(names)
    if to not in names:
        raise Invalid(f"no migration is named {to}; there are {', '.join(names)}")
    return set(names[: names.index(to) + 1])


@contextlib.contextmanager
def _backend(text: str) -> Iterator[tuple[DatabaseBackend, MigrationList]]:
    """Connect, and wait until no other migrator is at work."""
    _name_the_user()
    _name_the_system_certificates()
    migrations = yoyo.read_migrations(str(statements.folder("migrations")))
    try:
        with PostgresqlPsycopgBackend(
            _yoyo_uri(read_dsn(text)), default_migration_table
        ) as backend:
            # Not as startup options: PgBouncer refuses those.
            psycopg.RawCursor(backend.connection).execute(
                statements.BEGIN_SESSION, [list(_SETTINGS), list(_SETTINGS.values())]
            )
            _require_session(text, backend.connection)
            require_utf8(backend.connection.info.parameter_status("server_encoding"))
            _require_owner(backend.connection)
            backend.init_database()
            backend.execute(statements.LOCK_MIGRATIONS)
            backend.break_lock()
            yield backend, migrations
    except psycopg.Error as failure:
        if refusal := failure.diag.message_primary:
            # What a function of ours raises says by itself what to do.
            is_ours = failure.diag.source_function == "exec_stmt_raise"
            if isinstance(failure, psycopg.errors.InsufficientPrivilege) and not is_ours:
                refusal = f"{refusal}: {_AS_OWNER}"
            raise Unavailable(f"the database refuses: {refusal}") from None
        raise Unavailable("the database does not answer") from failure


def _require_owner(connection: psycopg.Connection) -> None:
    """Refuse a role that could not make yoyo's tables, which does not say so."""
    row = psycopg.RawCursor(connection).execute(statements.CHECK_OWNER).fetchone()
    if row is not None and not row[0]:
        schema = f"schema {row[1]}" if row[1] else "any schema of the search_path"
        raise Unavailable(f"the database refuses: permission denied for {schema}: {_AS_OWNER}")


def _require_session(text: str, connection: psycopg.Connection) -> None:
    """Behind a pooler, have the service's own check tell whether it keeps sessions."""
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
    """Return what yoyo would parse a URI into; the arguments reach psycopg unchanged."""
    arguments = dsn.parameters(
        application_name=dsn["application_name"] or "task-audit migrate",
        connect_timeout=dsn["connect_timeout"] or _CONNECT_SECONDS,
    )
    return DatabaseURI("postgresql+psycopg", None, None, None, None, dsn["dbname"], arguments)


def _name_the_system_certificates() -> None:
    """Let `sslrootcert=system` mean the same to psycopg, whose OpenSSL looks elsewhere."""
    paths = ssl.get_default_verify_paths()
    if paths.cafile:
        os.environ.setdefault(paths.openssl_cafile_env, paths.cafile)
    if paths.capath:
        os.environ.setdefault(paths.openssl_capath_env, paths.capath)


def _name_the_user() -> None:
    """Let yoyo note who migrates, also where the user id has no name."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["LOGNAME"] = str(os.getuid())
