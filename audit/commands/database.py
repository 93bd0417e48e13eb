"""The database of a command: the one that --dsn names, or the embedded PostgreSQL."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, TypeVar

from audit.commands.options import refused_option
from audit.commands.output import note
from audit.dsn import parse
from audit.errors import Invalid, Malformed
from audit.settings import Settings

if TYPE_CHECKING:
    from audit.postgres.pool import Pool

_Result = TypeVar("_Result")


@contextlib.contextmanager
def database(settings: Settings, *, create: bool = False) -> Iterator[str]:
    """Yield the DSN of the database, and name the database on standard error.

    `create` says whether to create an embedded database if there is none.
    """
    from audit.process.database import database as opened

    with opened(settings, create=create) as dsn:
        note(f"database: {name_of(settings)}")
        yield dsn


def name_of(settings: Settings) -> str:
    """Return where the tasks are, without any password."""
    if settings.dsn is None:
        return f"embedded PostgreSQL in {settings.data_dir}"
    return f"PostgreSQL {parse(settings.dsn.get_secret_value()).name}"


def run_with_pool(
    work: Callable[[Pool], Coroutine[object, object, _Result]], settings: Settings
) -> _Result:
    """Run `work` on a connection pool. The schema must be current."""
    from audit.postgres.pool import open_pool
    from audit.postgres.schema import require_current
    from audit.process.loop import run

    async def with_pool(dsn: str) -> _Result:
        async with open_pool(settings.model_copy(update={"pool_size": 1}), dsn) as pool:
            await require_current(pool)
            return await work(pool)

    with database(settings) as dsn:
        try:
            return run(with_pool(dsn))
        except (Invalid, Malformed) as problem:
            raise refused_option(problem) from None
