"""The database of a command or of the service: one that a DSN names, or the embedded PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from audit.postgres import embedded
from audit.settings import Settings

#: Connections of the embedded PostgreSQL beyond those of the workers.
_OTHER_CONNECTIONS: Final = 20
#: How long the service waits for a command that runs the embedded PostgreSQL to end.
_BUSY_SECONDS: Final = 5


@contextmanager
def database(settings: Settings, *, create: bool = False) -> Iterator[str]:
    """Yield the DSN of the database for a command, and migrate it if the settings say so.

    An embedded PostgreSQL that another process runs is shared. `create` says whether to create one
    if there is none.

    Raises:
        Unavailable: there is no database.
    """
    if settings.dsn is not None:
        yield _migrated(settings, settings.dsn.get_secret_value())
    else:
        with embedded.used(
            settings.data_dir,
            create=create,
            options=_options(settings),
            prepare=lambda dsn: _migrated(settings, dsn),
        ) as dsn:
            yield dsn


@contextmanager
def served_database(settings: Settings) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield the DSN of the database to serve, and a function that restarts it if it has ended.

    An embedded PostgreSQL is not shared with another service. It stops with this one.
    """
    if settings.dsn is not None:
        yield _migrated(settings, settings.dsn.get_secret_value()), lambda: None
        return
    with embedded.started(
        settings.data_dir,
        options=_options(settings),
        prepare=lambda dsn: _migrated(settings, dsn),
        busy_seconds=_BUSY_SECONDS,
    ) as server:
        yield server.dsn, server.keep_running


def _options(settings: Settings) -> dict[str, str]:
    """Return the options of the embedded PostgreSQL."""
    # A new worker starts before an old one stops, and a worker has a connection beside its pool.
    needed = (settings.workers + 1) * (settings.pool_size + 1) + _OTHER_CONNECTIONS
    return {"max_connections": str(max(100, needed))}


def _migrated(settings: Settings, dsn: str) -> str:
    """Apply the missing migrations if the settings say so; by default only if embedded."""
    if settings.dsn is None if settings.migrate is None else settings.migrate:
        # Commands that only read do not need it.
        from audit.postgres import migrate

        migrate.apply(dsn)
    return dsn
