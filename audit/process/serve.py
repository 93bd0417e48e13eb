"""Runs the service: database, schema, one listening socket, and the workers on it."""

from __future__ import annotations

import logging
import multiprocessing
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import cast

from audit.access.identity import Insecure
from audit.access.keys import read_keys
from audit.errors import Unavailable
from audit.history import demo
from audit.history.parsing import batch_of
from audit.history.service import AuditService
from audit.postgres import embedded, migrate
from audit.postgres.pool import open_pool
from audit.postgres.schema import require_current
from audit.process.workers import BACKLOG, Supervisor, run
from audit.settings import Settings
from audit.telemetry import tracing

log = logging.getLogger("audit")

DEMO_TASKS = 20_000
DEMO_DAYS = 90
_BATCH = 1000
_OTHER_CONNECTIONS = 20
#: How long `serve` waits for a command that runs the embedded PostgreSQL.
_BUSY_SECONDS = 5


@dataclass(frozen=True, slots=True)
class Started:
    """What a service that has begun to serve can say of itself."""

    url: str
    """An address at which a browser on this machine reaches it."""
    tasks: int
    needs_key: bool


def serve(settings: Settings, announce: Callable[[Started], None]) -> None:
    """Serve until SIGINT or SIGTERM, then finish what is under way; SIGHUP replaces the workers.

    The first two are a KeyboardInterrupt, as `commands.signals` arranges, and leave as one.
    `announce` is called once it listens.

    Raises:
        Unavailable: no database, or the address is taken.
        Insecure: there are no keys, and the address is not a loopback one.
        SchemaNotCurrent: the schema is behind, and `settings.migrate` does not say to move it.
    """
    if settings.traces:
        tracing.require()
    with _listening(settings) as listener, _kept(settings) as (dsn, keep):
        started = run(_prepare(settings, dsn, listener))

        def ready() -> None:
            announce(started)

        def look() -> None:
            keep()
            _reap_adopted()

        Supervisor(settings, dsn, listener).run(ready, look)


@contextmanager
def database(settings: Settings, *, create: bool = False) -> Iterator[str]:
    """Yield the DSN of the database in use, its schema moved up if the settings say so.

    An embedded one that another process runs is used as it is. `create` says whether to make an
    embedded one where there is none.

    Raises:
        Unavailable: there is no database.
    """
    if settings.dsn is not None:
        yield _migrated(settings, settings.dsn.get_secret_value())
    else:
        using = embedded.used(
            settings.data_dir,
            create=create,
            options=_options(settings),
            prepare=lambda dsn: _migrated(settings, dsn),
        )
        with using as dsn:
            yield dsn


@contextmanager
def _kept(settings: Settings) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield the DSN of the database to serve, and what keeps our own running, to be called often.

    The embedded server is ours alone to run: when it stops, the service stops too.
    """
    if settings.dsn is not None:
        yield _migrated(settings, settings.dsn.get_secret_value()), _leave_alone
        return
    with ExitStack() as stack:
        deadline = time.monotonic() + _BUSY_SECONDS
        while True:
            try:
                server = stack.enter_context(
                    embedded.started(
                        settings.data_dir,
                        options=_options(settings),
                        prepare=lambda dsn: _migrated(settings, dsn),
                    )
                )
                break
            except embedded.Busy:
                # A command that is about to end may run on it.
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        yield server.dsn, server.keep


def _options(settings: Settings) -> dict[str, str]:
    # One more while a worker is replaced.
    wanted = (settings.workers + 1) * (settings.pool_size + 1) + _OTHER_CONNECTIONS
    return {"max_connections": str(max(100, wanted))}


def _migrated(settings: Settings, dsn: str) -> str:
    """Move the schema up if the settings say so; unset, they do for an embedded database."""
    if settings.dsn is None if settings.migrate is None else settings.migrate:
        migrate.apply(dsn)
    return dsn


def _leave_alone() -> None:
    """Another's database is another's to keep."""


def _reap_adopted() -> None:
    """As the first process of a container, collect the processes that nobody else waits for.

    The sessions of a PostgreSQL that was killed become our children, for example.
    """
    if os.getpid() != 1:
        return
    ours = {child.pid for child in multiprocessing.active_children()}
    while True:
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is None or ended.si_pid in ours:
                return
            os.waitpid(ended.si_pid, os.WNOHANG)
        except ChildProcessError:
            return


@contextmanager
def _listening(settings: Settings) -> Iterator[socket.socket]:
    host = settings.host.removeprefix("[").removesuffix("]")
    try:
        family, address = _address(host, settings.port)
        listener = socket.create_server(
            address,
            family=family,
            backlog=BACKLOG,
            # Otherwise it depends on the system whether :: takes IPv4 too.
            dualstack_ipv6=address[0] == "::" and socket.has_dualstack_ipv6(),
        )
    except (OSError, UnicodeError) as failure:
        reason = getattr(failure, "strerror", None) or "this is not a host name"
        raise Unavailable(
            f"cannot listen on {settings.host} port {settings.port}: {reason};"
            " give another --host or --port"
        ) from None
    with listener:
        yield listener


def _address(host: str, port: int) -> tuple[socket.AddressFamily, tuple[str, int]]:
    """Return what a host name or address means: its first IPv4 address, or else its first IPv6."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, *_, address = min(found, key=lambda one: one[0] != socket.AF_INET)
    return family, cast("tuple[str, int]", address)


def _url(listener: socket.socket) -> str:
    """Return an address that can be opened on this machine, for any address to listen on."""
    host, port = listener.getsockname()[:2]
    if host in {"0.0.0.0", "::"}:  # noqa: S104 - it is recognised here
        host = "127.0.0.1"
    if ":" in host:
        host = f"[{host.replace('%', '%25')}]"
    return f"http://{host}:{port}"


async def _prepare(settings: Settings, dsn: str, listener: socket.socket) -> Started:
    """Check the schema and the keys; record demo tasks if asked for."""
    # The demo tasks are recorded in one transaction, which no client waits for.
    settings = settings.model_copy(update={"pool_size": 1, "write_timeout_seconds": 600})
    async with open_pool(settings, dsn) as pool:
        await require_current(pool)
        is_guarded = settings.jwt_issuer is not None or not (await read_keys(pool)).are_none
        host = listener.getsockname()[0]
        if not is_guarded and not settings.insecure and not ip_address(host).is_loopback:
            raise Insecure(
                f"whoever reaches {host} could read and record, since there are no keys: make one"
                " with `audit keys create`, or say --insecure"
            )
        service = AuditService(pool, settings)
        if shortage := await service.partitions.lock_shortage():
            log.warning("%s", shortage)
        tasks = await service.get_task_count()
        if settings.demo and tasks == 0:
            # Of the last full hour: services that start together on one database agree.
            until = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
            history = list(demo.generate(DEMO_TASKS, days=DEMO_DAYS, until=until))
            batches = [history[i : i + _BATCH] for i in range(0, len(history), _BATCH)]
            # One transaction: a start that is cut short leaves no part of it.
            done = await service.recording.record_batches([batch_of(batch) for batch in batches])
            tasks = done.recorded + done.duplicates
        return Started(_url(listener), tasks, is_guarded)
