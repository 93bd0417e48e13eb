"""Runs the service: the database and its schema, the listening socket, and the supervisor."""

from __future__ import annotations

import logging
import multiprocessing
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import cast

from audit.access.identity import Insecure
from audit.access.keys import read_keys
from audit.errors import Unavailable
from audit.history import demo
from audit.history.demo_log import record_history
from audit.history.service import AuditService
from audit.postgres.pool import open_pool
from audit.postgres.schema import require_current
from audit.process.database import served_database
from audit.process.loop import run
from audit.process.supervisor import Supervisor
from audit.process.worker import BACKLOG
from audit.settings import Settings
from audit.telemetry import tracing

log = logging.getLogger("audit")

DEMO_TASKS = 20_000
DEMO_DAYS = 90
#: The transaction that records the demo tasks may take longer than a request.
_DEMO_SECONDS = 600


@dataclass(frozen=True, slots=True)
class Started:
    """What is known of a service that has begun to serve."""

    url: str
    """An address that a browser on this machine can open."""
    tasks: int
    needs_key: bool


def serve(settings: Settings, announce: Callable[[Started], None]) -> None:
    """Serve until a KeyboardInterrupt, finish the open requests, and raise it again.

    The command line raises it on SIGINT and SIGTERM. SIGHUP replaces the workers. `announce` is
    called once the service listens.

    Raises:
        Unavailable: there is no database, or the address is taken.
        Insecure: the address is not a loopback address, and there are no API keys.
        SchemaNotCurrent: migrations are missing, and `settings.migrate` is off.
    """
    if settings.traces:
        tracing.require()
    with _listening(settings) as listener, served_database(settings) as (dsn, keep_running):
        started = run(_prepare(settings, dsn, listener))

        def check() -> None:
            keep_running()
            _reap_adopted()

        Supervisor(settings, dsn, listener).run(lambda: announce(started), check)


def _reap_adopted() -> None:
    """Collect ended processes that this one has adopted as the first process of a container.

    If PostgreSQL is killed, for example, its sessions become our children.
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
            # Otherwise the system decides whether :: accepts IPv4 too.
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
    """Return the first IPv4 address of a host, or its first IPv6 address if it has no other."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, *_, address = min(found, key=lambda one: one[0] != socket.AF_INET)
    return family, cast("tuple[str, int]", address)


def _url(listener: socket.socket) -> str:
    """Return a URL that can be opened on this machine."""
    host, port = listener.getsockname()[:2]
    if host in {"0.0.0.0", "::"}:  # noqa: S104 - compared, not bound
        host = "127.0.0.1"
    if ":" in host:
        host = f"[{host.replace('%', '%25')}]"
    return f"http://{host}:{port}"


async def _prepare(settings: Settings, dsn: str, listener: socket.socket) -> Started:
    """Check the schema and the API keys, and record demo tasks if the settings say so."""
    settings = settings.model_copy(update={"pool_size": 1, "write_timeout_seconds": _DEMO_SECONDS})
    async with open_pool(settings, dsn) as pool:
        await require_current(pool)
        needs_key = settings.jwt_issuer is not None or not (await read_keys(pool)).are_none
        host = listener.getsockname()[0]
        if not (needs_key or settings.insecure or ip_address(host).is_loopback):
            raise Insecure(
                f"there are no API keys, so anyone who can reach {host} could read and record;"
                " create a key with `audit keys create`, or give --insecure"
            )
        service = AuditService(pool, settings)
        if shortage := await service.partitions.lock_shortage():
            log.warning("%s", shortage)
        tasks = await service.get_task_count()
        if settings.demo and tasks == 0:
            tasks = await _record_demo(service)
        return Started(_url(listener), tasks, needs_key)


async def _record_demo(service: AuditService) -> int:
    """Record the demo tasks in one transaction, and return their number."""
    # With a full hour, services that start at once on one database generate the same tasks.
    until = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    history = list(demo.generate(DEMO_TASKS, days=DEMO_DAYS, until=until))
    return await record_history(service, history, until)
