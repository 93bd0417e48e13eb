"""Opens the sessions of a pool on one server, with the settings that the statements need.

All sessions of a pool must be on the same server, because a standby may not have the tasks yet that
were recorded on the primary, and the version of the data on one server says nothing about another.
The first session chooses the server. Later ones connect to it for as long as it answers.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import nullcontext, suppress
from typing import Any, Final, NamedTuple, TypeVar, cast
from weakref import WeakSet

import asyncpg
from asyncpg.connect_utils import SessionAttribute

from audit.dsn import Dsn, Host
from audit.errors import Unavailable, UnsuitableDatabase
from audit.postgres import statements
from audit.postgres.statements import Statement
from audit.postgres.tls import is_about_tls, tls_attempts

#: Behind a proxy or a name with several addresses, each attempt may reach another server.
_TRIES_FOR_THE_SERVER: Final = 5
_LOOK_FOR_WRITER_SECONDS: Final = 1
#: The part of the time for a connection that all hosts together may take.
_SHARE: Final = 0.8
_KEEPALIVES: Final = {
    "keepalives_idle": "TCP_KEEPIDLE",
    "keepalives_interval": "TCP_KEEPINTVL",
    "keepalives_count": "TCP_KEEPCNT",
    "tcp_user_timeout": "TCP_USER_TIMEOUT",
}
_POOLER: Final = (
    "the DSN leads to a connection pooler that gives transactions or statements, not sessions, to"
    " its clients; set pool_mode = session in PgBouncer, or connect to PostgreSQL directly"
)
#: PostgreSQL raises these if a statement was prepared in another session. PgBouncer raises the last
#: one for a BEGIN.
_NO_SESSION: Final = (
    asyncpg.InvalidSQLStatementNameError,
    asyncpg.DuplicatePreparedStatementError,
    asyncpg.ProtocolViolationError,
)

_Session = TypeVar("_Session", bound="Session")


class _Endpoint(NamedTuple):
    """A host and one of its addresses."""

    host: Host
    address: str


class Server(NamedTuple):
    """A server of a cluster, as it was when a session began."""

    identity: str
    """It changes when the server restarts."""
    cluster: str
    """The identity that a primary and its standbys have in common."""
    timeline: str | None
    """The timeline of a primary; None for a standby."""
    is_standby: bool


class Place(NamedTuple):
    """A place in the WAL of a primary, and the tables that changes before it were made to."""

    cluster: str
    tables: str
    """The database and the table of tasks."""
    timeline: str | None
    lsn: int
    """The bytes of WAL before it."""

    def contains(self, other: Place) -> bool:
        """Return whether a standby that has replayed all before this has done so for `other`."""
        return self[:3] == other[:3] and self.lsn >= other.lsn


class Session(asyncpg.Connection):
    """A connection that knows its server."""

    server: str
    """The identity of the server. It changes when the server restarts."""
    endpoint: _Endpoint
    is_standby: bool
    is_read_only: bool
    """Whether the server refused writes when the session began."""
    known: Server
    """What the session knew about its server when it began."""
    is_pooled: bool
    """Whether a pooler such as PgBouncer is between the service and PostgreSQL."""
    replayed: Place | None = None
    """Up to where the standby has replayed the WAL, as far as the session knows."""

    def note_replayed(self, place: Place) -> None:
        """Note what the standby of the session has replayed."""
        self.replayed = place


class Servers:
    """The servers of a DSN, and the one that the pool uses."""

    def __init__(self, dsn: Dsn, settings: Mapping[str, str], *, seconds: float) -> None:
        """`settings` are set in each session. `seconds` limits the time for one connection."""
        #: None until the pool is open.
        self.pool: asyncpg.Pool[asyncpg.Record] | None = None
        self._dsn = dsn
        self._settings = settings
        self._host_seconds = dsn.connect_seconds or seconds * _SHARE / len(dsn.hosts)
        self._server: str | None = None
        self._endpoint: _Endpoint | None = None
        self._choosing = asyncio.Lock()
        self._sessions: WeakSet[Session] = WeakSet()
        self._writer_wanted = asyncio.Event()

    async def connect(
        self, *_arguments: object, connection_class: type[_Session], **given: Any
    ) -> _Session:
        """Open a session on the server of the pool. The pool of asyncpg calls this.

        Raises:
            UnsuitableDatabase: the sessions would be on several servers.
        """
        async with self._choosing if self._server is None else nullcontext():
            for _ in range(_TRIES_FOR_THE_SERVER):
                session = await self._open(connection_class, given)
                if session.server == self._server or not self._is_alive():
                    break
                session.terminate()
            else:
                if self.pool is None:
                    raise UnsuitableDatabase("the DSN leads to more than one server; name one")
                session = await self._open(connection_class, given)
            if session.server != self._server:
                await self._move_to(session)
            self._sessions.add(session)
            if session.is_read_only and self._dsn.may_write and len(self._dsn.hosts) > 1:
                self._writer_wanted.set()
            return session

    def note_refused_write(self, session: Session) -> None:
        """Look for a server that can write, if there are others or this one could write before."""
        if self._dsn.may_write and (len(self._dsn.hosts) > 1 or not session.is_read_only):
            self._writer_wanted.set()

    async def keep_on_writer(self) -> None:
        """Without end, move the pool to a server that can write whenever the current one cannot."""
        while True:
            await self._writer_wanted.wait()
            with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError, Unavailable):
                session = await self._open(Session, {}, must_write=True)
                session.terminate()
                self._writer_wanted.clear()
                await self._move_to(session)
            await asyncio.sleep(_LOOK_FOR_WRITER_SECONDS)

    async def require_sessions(self, pool: asyncpg.Pool[asyncpg.Record]) -> None:
        """Check that a pooler, if there is one, keeps a session for each connection of the pool.

        Raises:
            UnsuitableDatabase: it does not.
        """
        async with pool.acquire() as connection:
            first: Session = cast("Any", connection)._con  # noqa: SLF001 - no public name
            if not first.is_pooled:
                return
            second = await self.connect(connection_class=Session)
            try:
                for _ in range(3):
                    before = await _process(first)
                    async with second.transaction():
                        other = await _process(second)
                        after = await _process(first)
                    if other == before or before != after:
                        raise UnsuitableDatabase(_POOLER)
            except (*_NO_SESSION, asyncpg.ConnectionDoesNotExistError) as failure:
                if isinstance(failure, _NO_SESSION) or isinstance(failure.__cause__, _NO_SESSION):
                    raise UnsuitableDatabase(_POOLER) from failure
                raise
            finally:
                second.terminate()

    def _is_alive(self) -> bool:
        return any(
            not session.is_closed() and session.server == self._server for session in self._sessions
        )

    async def _move_to(self, session: Session) -> None:
        is_another = self._server is not None
        self._server, self._endpoint = session.server, session.endpoint
        if is_another and self.pool is not None:
            # Sessions on the old server are closed when they are released.
            await self.pool.expire_connections()

    async def _open(
        self, kind: type[_Session], given: Mapping[str, Any], *, must_write: bool = False
    ) -> _Session:
        wanted = "read-write" if must_write else self._dsn["target_session_attrs"]
        fallback: _Session | None = None
        failures: list[Exception] = []
        try:
            async for endpoint in self._endpoints(failures):
                try:
                    session = await self._begin(endpoint, kind, given)
                except (OSError, asyncpg.CannotConnectNowError) as failure:
                    failures.append(failure)
                    continue
                is_wanted, is_acceptable = _suits(session, wanted)
                if is_wanted or (is_acceptable and endpoint == self._endpoint):
                    return session
                if is_acceptable and fallback is None:
                    fallback = session
                else:
                    session.terminate()
            if fallback is not None:
                chosen, fallback = fallback, None
                return chosen
        finally:
            if fallback is not None:
                fallback.terminate()
        if failures:
            raise failures[0]
        raise Unavailable(f"no database server is {wanted}", retry_after_seconds=1)

    async def _endpoints(self, failures: list[Exception]) -> AsyncIterator[_Endpoint]:
        """Yield the endpoint of the pool, if there is one, then all others of the hosts.

        A host whose name has no address is left out, and its error is added to `failures`.
        """
        if self._endpoint is not None:
            yield self._endpoint
        hosts = list(self._dsn.hosts)
        is_random = self._dsn["load_balance_hosts"] == "random"
        if is_random:
            random.shuffle(hosts)
        for host in hosts:
            try:
                async with asyncio.timeout(self._host_seconds):
                    addresses = await _addresses(host)
            except OSError as failure:
                failures.append(failure)
                continue
            if is_random:
                random.shuffle(addresses)
            for address in addresses:
                if (host, address) != self._endpoint:
                    yield _Endpoint(host, address)

    async def _begin(
        self, endpoint: _Endpoint, kind: type[_Session], given: Mapping[str, Any]
    ) -> _Session:
        async with asyncio.timeout(self._host_seconds):
            session = await self._connect(endpoint, kind, given)
            try:
                _keep_alive(session, self._dsn)
                names, values = list(self._settings), list(self._settings.values())
                begun = await _row(session, statements.BEGIN_SESSION, names, values)
                row = await _row(session, statements.CHECK_SESSION, names)
            except _NO_SESSION as failure:
                session.terminate()
                raise UnsuitableDatabase(_POOLER) from failure
            except BaseException:
                session.terminate()
                raise
        if row["settings"] != begun["settings"]:
            session.terminate()
            raise UnsuitableDatabase(_POOLER)
        session.endpoint = endpoint
        session.server = row["server"]
        session.is_standby, session.is_read_only = row["is_standby"], row["is_read_only"]
        session.known = Server(row["server"], row["cluster"], row["timeline"], row["is_standby"])
        session.is_pooled = row["pid"] != session.get_server_pid()
        return session

    async def _connect(
        self, endpoint: _Endpoint, kind: type[_Session], given: Mapping[str, Any]
    ) -> _Session:
        """Connect with TLS or without, as `sslmode` says."""
        host, address = endpoint
        name = self._dsn["application_name"] or self._dsn["fallback_application_name"]
        server_settings = {"application_name": name or "task-audit"}
        if self._dsn["options"]:
            server_settings["options"] = self._dsn["options"]
        attempts = tls_attempts(self._dsn, host)
        for number, tls in enumerate(attempts, start=1):
            try:
                return await asyncpg.connect(
                    host=address,
                    port=host.port,
                    user=self._dsn["user"],
                    # If no password is given, asyncpg reads files and variables. A function that
                    # returns an empty text prevents it.
                    password=lambda: self._dsn.password_for(host) or "",
                    database=self._dsn["dbname"],
                    ssl=tls,
                    direct_tls=False,
                    target_session_attrs=SessionAttribute.any,
                    server_settings=server_settings,
                    timeout=self._host_seconds,
                    connection_class=kind,
                    max_cached_statement_lifetime=0,
                    **given,
                )
            except Exception as failure:
                if number == len(attempts) or not is_about_tls(failure):
                    raise
        raise AssertionError  # the last attempt returns or raises


def _suits(session: Session, wanted: str) -> tuple[bool, bool]:
    """Return whether such a server is wanted, and whether it is allowed as a fallback.

    With `any`, the service prefers a server that can write, because it records tasks.
    """
    can_write, is_standby = not session.is_read_only, session.is_standby
    return {
        "any": (can_write, True),
        "read-write": (can_write, False),
        "read-only": (not can_write, False),
        "primary": (not is_standby, False),
        "standby": (is_standby, False),
        "prefer-standby": (is_standby, True),
    }[wanted]


async def _row(session: Session, statement: Statement, *values: object) -> asyncpg.Record:
    # The method of a subclass would measure the statement, but the session is not in use yet.
    row = await asyncpg.Connection.fetchrow(session, statement.text, *values)
    assert row is not None  # noqa: S101 - each of these statements returns one
    return row


async def _process(session: Session) -> int:
    process: int = (await _row(session, statements.CHECK_SESSION, []))["pid"]
    return process


async def _addresses(host: Host) -> list[str]:
    if host.is_socket:
        return [host.address]
    found = await asyncio.get_running_loop().getaddrinfo(
        host.address, host.port, type=socket.SOCK_STREAM
    )
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _keep_alive(session: Session, dsn: Dsn) -> None:
    """Set the socket options that libpq sets. asyncpg sets none, and libpq keeps sockets alive."""
    transport: asyncio.Transport = cast("Any", session)._transport  # noqa: SLF001 - no public name
    connection = transport.get_extra_info("socket")
    if connection.family == socket.AF_UNIX:
        return
    is_on = int(dsn["keepalives"] or 1) != 0
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, int(is_on))
    for name, option in _KEEPALIVES.items():
        value = int(dsn[name] or 0)
        if value > 0 and hasattr(socket, option) and (is_on or name == "tcp_user_timeout"):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
