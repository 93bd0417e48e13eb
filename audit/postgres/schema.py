"""Checks that a database can store all texts and has every migration."""

from __future__ import annotations

from typing import TYPE_CHECKING

import asyncpg

from audit.deadlines import Deadline
from audit.errors import SchemaNotCurrent, UnsuitableDatabase
from audit.postgres import statements
from audit.postgres.pool import acquired
from audit.resources import folder

if TYPE_CHECKING:
    from audit.postgres.pool import Pool

_CHECK_SECONDS = 5


async def require_current(pool: Pool) -> None:
    """Check that the database can store all texts and has every migration.

    Raises:
        UnsuitableDatabase: its encoding is not UTF8.
        SchemaNotCurrent: it lacks migrations.
    """
    async with acquired(pool, Deadline(_CHECK_SECONDS)) as connection:
        require_utf8(connection.get_settings().server_encoding)
    pending = await pending_migrations(pool)
    if pending:
        raise SchemaNotCurrent(
            f"the database lacks migrations: {', '.join(pending)}; run `audit migrate`,"
            " or serve with --migrate"
        )


def require_utf8(encoding: str | None) -> None:
    """Check the encoding of a database.

    Raises:
        UnsuitableDatabase: it is not UTF8.
    """
    if encoding != "UTF8":
        raise UnsuitableDatabase(
            f"the encoding of the database is {encoding}; it must be UTF8:"
            " CREATE DATABASE … TEMPLATE template0 ENCODING 'UTF8'"
        )


def migrations_on_disk() -> list[str]:
    """Return the names of all migrations in order."""
    return sorted(
        file.name.removesuffix(".sql")
        for file in folder("migrations").iterdir()
        if file.name.endswith(".sql") and not file.name.endswith(".rollback.sql")
    )


async def pending_migrations(pool: Pool) -> list[str]:
    """Return the names of the migrations that the database lacks, in order.

    Raises:
        Unavailable: the database does not answer.
    """
    async with acquired(pool, Deadline(_CHECK_SECONDS)) as connection:
        try:
            rows = await connection.fetch(statements.LIST_MIGRATIONS)
        except asyncpg.UndefinedTableError:
            rows = []
    applied = {row["migration_id"] for row in rows}
    return [name for name in migrations_on_disk() if name not in applied]
