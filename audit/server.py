"""Runs the service: database, schema, one listening socket, and the workers on it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from ipaddress import ip_address

from audit import demo, embedded, migrate, models, tracing
from audit.access import Insecure
from audit.database import open_pool, require_current
from audit.errors import Unavailable
from audit.keys import read_keys
from audit.service import AuditService
from audit.settings import Settings
from audit.workers import BACKLOG, Supervisor, run

DEMO_TASKS = 20_000
DEMO_DAYS = 90
_BATCH = 1000
_OTHER_CONNECTIONS = 20


def serve(settings: Settings, announce: Callable[[str, int], None]) -> None:
    """Serve until SIGINT or SIGTERM, then finish what is under way; SIGHUP replaces the workers.

    The first two are a KeyboardInterrupt, as `cli.main` arranges, and leave as one.
    `announce` is called once it listens, with its URL and the number of tasks recorded.

    Raises:
        Unavailable: no database, or the address is taken.
        Insecure: there are no keys, and the address is not a loopback one.
        SchemaNotCurrent: the schema is behind, and `settings.migrate` does not say to move it.
    """
    if settings.traces:
        tracing.require()
    with _listening(settings) as listener, _kept(settings) as (dsn, keep):
        tasks = run(_prepare(settings, dsn, listener))

        def ready() -> None:
            announce(_url(listener), tasks)

        Supervisor(settings, dsn, listener).run(ready, keep)


@contextmanager
def database(settings: Settings) -> Iterator[str]:
    """Yield the DSN of the database in use, its schema moved up if the settings say so."""
    with _kept(settings) as (dsn, _):
        yield dsn


@contextmanager
def _kept(settings: Settings) -> Iterator[tuple[str, Callable[[], None]]]:
    """Like `database`; yield also what is to be called now and then: it keeps ours running."""
    with ExitStack() as stack:
        keep: Callable[[], None] = _leave_alone
        if settings.dsn is not None:
            dsn = settings.dsn.get_secret_value()
        else:
            # One more while a worker is replaced.
            wanted = (settings.workers + 1) * (settings.pool_size + 1) + _OTHER_CONNECTIONS
            options = {"max_connections": str(max(100, wanted))}
            server = stack.enter_context(embedded.started(settings.data_dir, options=options))
            dsn, keep = server.dsn, server.keep
        if settings.dsn is None if settings.migrate is None else settings.migrate:
            migrate.apply(dsn)
        yield dsn, keep


def _leave_alone() -> None:
    """Another's database is another's to keep."""


@contextmanager
def _listening(settings: Settings) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listener = socket.create_server(
            (settings.host, settings.port), family=family, backlog=BACKLOG
        )
    except OSError as failure:
        raise Unavailable(
            f"cannot listen on {settings.host} port {settings.port}: {failure.strerror};"
            " give another --host or --port"
        ) from None
    with listener:
        yield listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


async def _prepare(settings: Settings, dsn: str, listener: socket.socket) -> int:
    """Check the schema, record demo tasks if asked for; return the number of tasks."""
    async with open_pool(settings.model_copy(update={"pool_size": 1}), dsn) as pool:
        await require_current(pool)
        is_guarded = settings.jwt_issuer is not None or not (await read_keys(pool)).are_none
        host = listener.getsockname()[0]
        if not is_guarded and not settings.insecure and not ip_address(host).is_loopback:
            raise Insecure(
                f"whoever reaches {host} could read and record, since there are no keys: make one"
                " with `audit keys create`, or say --insecure"
            )
        service = AuditService(pool, settings)
        tasks = await service.get_task_count()
        if settings.demo and tasks == 0:
            # Of the last full hour: services that start together on one database agree.
            until = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
            history = list(demo.generate(DEMO_TASKS, days=DEMO_DAYS, until=until))
            batches = [history[i : i + _BATCH] for i in range(0, len(history), _BATCH)]
            # One transaction: a start that is cut short leaves no part of it.
            done = await service.record_batches([models.batch_of(batch) for batch in batches])
            tasks = done.recorded + done.duplicates
        return tasks
