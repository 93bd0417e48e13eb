"""Opens the sessions of a pool: to the right server, with the settings that the statements need.

All sessions of a pool are on one server. A version of the data that was read on one server says
nothing about the rows of another, and a task that was recorded on the primary may not have reached
a standby yet. The first session chooses the server; later ones go there while it answers.
"""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import nullcontext, suppress
from typing import Any, Final, Literal, TypeVar, cast
from weakref import WeakSet

import asyncpg
from asyncpg.connect_utils import SessionAttribute

from audit.dsn import Dsn, Host
from audit.errors import Unavailable
from audit.postgres import statements

#: A proxy or a name with several addresses may lead to another server once; the next try may not.
_TRIES_FOR_THE_SERVER: Final = 5
_LOOK_FOR_WRITER_SECONDS: Final = 1
#: Of the time for a connection, the hosts together may take this share.
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
#: What PostgreSQL says if a statement was prepared in another session, and PgBouncer to a BEGIN.
_NO_SESSION: Final = (
    asyncpg.InvalidSQLStatementNameError,
    asyncpg.DuplicatePreparedStatementError,
    asyncpg.ProtocolViolationError,
)

_Session = TypeVar("_Session", bound="Session")


class Session(asyncpg.Connection):
    """A connection that knows which server it is on."""

    server: str
    """Differs between servers, and between two starts of one."""
    place: tuple[Host, str]
    is_standby: bool
    is_read_only: bool
    """Whether writes were refused when the session began."""
    is_pooled: bool
    """Whether something between us and PostgreSQL hands out its sessions."""


class UnsuitableDatabase(Unavailable):
    """What the DSN leads to answers, but the service would not be right on it."""


class Servers:
    """The servers that a DSN leads to, and the one that the pool is on."""

    def __init__(self, dsn: Dsn, settings: Mapping[str, str], *, seconds: float) -> None:
        """`settings` are those of each session; `seconds` is the time for one connection."""
        self.pool: asyncpg.Pool[asyncpg.Record] | None = None
        """To be set once it is made."""
        self._dsn = dsn
        self._settings = settings
        self._host_seconds = dsn.connect_seconds or seconds * _SHARE / len(dsn.hosts)
        self._server: str | None = None
        self._place: tuple[Host, str] | None = None
        self._choosing = asyncio.Lock()
        self._sessions: WeakSet[Session] = WeakSet()
        self._writer_wanted = asyncio.Event()

    async def connect(
        self, *_arguments: object, connection_class: type[_Session], **given: Any
    ) -> _Session:
        """Open a session on the server of the pool; `asyncpg.create_pool` calls this.

        Raises:
            UnsuitableDatabase: the sessions would be of several servers.
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
        """Look for another server, if this one could write before or there are others."""
        if self._dsn.may_write and (len(self._dsn.hosts) > 1 or not session.is_read_only):
            self._writer_wanted.set()

    async def keep_on_writer(self) -> None:
        """Move the pool to a server that can write when the present one cannot; runs for ever."""
        while True:
            await self._writer_wanted.wait()
            with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError, Unavailable):
                session = await self._open(Session, {}, must_write=True)
                session.terminate()
                self._writer_wanted.clear()
                await self._move_to(session)
            await asyncio.sleep(_LOOK_FOR_WRITER_SECONDS)

    async def require_sessions(self, pool: asyncpg.Pool[asyncpg.Record]) -> None:
        """Check that a pooler, if there is one, keeps a session for each of our connections.

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
        self._server, self._place = session.server, session.place
        if is_another and self.pool is not None:
            # Sessions on the old server are closed as soon as they are not in use.
            await self.pool.expire_connections()

    async def _open(
        self, kind: type[_Session], given: Mapping[str, Any], *, must_write: bool = False
    ) -> _Session:
        fallback: _Session | None = None
        failure: Exception | None = None
        try:
            async for place in self._places():
                try:
                    session = await self._begin(place, kind, given)
                except (OSError, asyncpg.CannotConnectNowError) as failed:
                    failure = failure or failed
                    continue
                fits, may_serve = self._fits(session)
                if fits if not must_write else not session.is_read_only:
                    return session
                if may_serve and not must_write and place == self._place:
                    return session
                if may_serve and not must_write and fallback is None:
                    fallback = session
                else:
                    session.terminate()
            if fallback is not None:
                chosen, fallback = fallback, None
                return chosen
        finally:
            if fallback is not None:
                fallback.terminate()
        if failure is not None:
            raise failure
        wanted = "read-write" if must_write else self._dsn["target_session_attrs"]
        raise Unavailable(f"no database server is {wanted}", retry_after_seconds=1)

    def _fits(self, session: Session) -> tuple[bool, bool]:
        """Return whether it is what the DSN asks for, and whether it may serve for want of that.

        `any` prefers a server that can write: the service records, and sees its own records.
        """
        match self._dsn["target_session_attrs"]:
            case "any":
                return not session.is_read_only, True
            case "read-write":
                return not session.is_read_only, False
            case "read-only":
                return session.is_read_only, False
            case "primary":
                return not session.is_standby, False
            case "standby":
                return session.is_standby, False
            case _:
                return session.is_standby, True

    async def _places(self) -> AsyncIterator[tuple[Host, str]]:
        """Yield where to connect: where the pool is, then the hosts and all their addresses."""
        if self._place is not None:
            yield self._place
        hosts = list(self._dsn.hosts)
        is_random = self._dsn["load_balance_hosts"] == "random"
        if is_random:
            random.shuffle(hosts)
        for host in hosts:
            addresses = await _addresses(host)
            if is_random:
                random.shuffle(addresses)
            for address in addresses:
                if (host, address) != self._place:
                    yield host, address

    async def _begin(
        self, place: tuple[Host, str], kind: type[_Session], given: Mapping[str, Any]
    ) -> _Session:
        async with asyncio.timeout(self._host_seconds):
            session = await self._connect(place, kind, given)
            try:
                _keep_alive(session, self._dsn)
                names, values = list(self._settings), list(self._settings.values())
                begun = await _row(session, statements.BEGIN_SESSION, names, values)
                row = await _row(session, statements.CHECK_SESSION, names)
                _require(row["settings"] == begun["settings"])
            except _NO_SESSION as failure:
                session.terminate()
                raise UnsuitableDatabase(_POOLER) from failure
            except BaseException:
                session.terminate()
                raise
        session.place = place
        session.server = row["server"]
        session.is_standby, session.is_read_only = row["is_standby"], row["is_read_only"]
        session.is_pooled = row["pid"] != session.get_server_pid()
        return session

    async def _connect(
        self, place: tuple[Host, str], kind: type[_Session], given: Mapping[str, Any]
    ) -> _Session:
        """Connect with TLS, without, or with what is left of the two, as `sslmode` says."""
        host, address = place
        name = self._dsn["application_name"] or self._dsn["fallback_application_name"]
        server_settings = {"application_name": name or "task-audit"}
        if self._dsn["options"]:
            server_settings["options"] = self._dsn["options"]
        attempts = _tls(self._dsn, host)
        for number, tls in enumerate(attempts, start=1):
            try:
                return await asyncpg.connect(
                    host=address,
                    port=host.port,
                    user=self._dsn["user"],
                    # A function: without one, asyncpg looks into files and variables itself.
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
                if number == len(attempts) or not _is_about_tls(failure):
                    raise
        raise AssertionError  # the last attempt returns or raises


async def _row(session: Session, statement: str, *values: object) -> asyncpg.Record:
    # Not the method of a subclass, which counts statements: the session is not in use yet.
    row = await asyncpg.Connection.fetchrow(session, statement, *values)
    assert row is not None  # noqa: S101 - each of these statements gives one
    return row


async def _process(session: Session) -> int:
    process: int = (await _row(session, statements.CHECK_SESSION, []))["pid"]
    return process


def _require(is_kept: bool) -> None:
    if not is_kept:
        raise UnsuitableDatabase(_POOLER)


async def _addresses(host: Host) -> list[str]:
    if host.is_socket:
        return [host.address]
    found = await asyncio.get_running_loop().getaddrinfo(
        host.address, host.port, type=socket.SOCK_STREAM
    )
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _keep_alive(session: Session, dsn: Dsn) -> None:
    """Set what libpq sets on its sockets; unlike asyncpg, it keeps them alive by default."""
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


# --- TLS ------------------------------------------------------------------------------------------


class _Context(ssl.SSLContext):
    """A context for one host, whose name the certificate is checked for.

    asyncpg is given one of the host's addresses and would check for that.
    """

    name: str

    def wrap_bio(
        self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, *args: Any, **more: Any
    ) -> ssl.SSLObject:
        return super().wrap_bio(incoming, outgoing, *args, **{**more, "server_hostname": self.name})


def _tls(dsn: Dsn, host: Host) -> list[ssl.SSLContext | Literal[False]]:
    """Return the ways to try, in their order: a context, or False for no TLS."""
    if host.is_socket or dsn["sslmode"] == "disable":
        return [False]
    context = _context(dsn, host)
    match dsn["sslmode"]:
        case "allow":
            return [False, context]
        case "prefer":
            return [context, False]
        case _:
            return [context]


def _context(dsn: Dsn, host: Host) -> ssl.SSLContext:
    context = _Context(ssl.PROTOCOL_TLS_CLIENT)
    context.name = host.name
    context.check_hostname = dsn["sslmode"] == "verify-full"
    context.set_alpn_protocols(["postgresql"])
    context.minimum_version = _version(dsn["ssl_min_protocol_version"]) or ssl.TLSVersion.TLSv1_2
    if highest := _version(dsn["ssl_max_protocol_version"]):
        context.maximum_version = highest
    if dsn["sslrootcert"] == "system":
        context.load_default_certs()
    elif dsn["sslrootcert"]:
        context.load_verify_locations(dsn["sslrootcert"])
    else:
        context.verify_mode = ssl.CERT_NONE
    if dsn["sslcrl"]:
        context.load_verify_locations(dsn["sslcrl"])
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN
    if dsn["sslcert"]:
        context.load_cert_chain(dsn["sslcert"], dsn["sslkey"], password=lambda: dsn["sslpassword"])
    return context


def _version(name: str) -> ssl.TLSVersion | None:
    return ssl.TLSVersion[name.replace(".", "_")] if name else None


def _is_about_tls(failure: Exception) -> bool:
    """Whether the other way, with or without TLS, may succeed. A wrong password is not tried twice.

    asyncpg says by a plain ConnectionError that the server has no TLS; `pg_hba.conf` may refuse
    one of the ways.
    """
    if isinstance(failure, asyncpg.InvalidPasswordError):
        return False
    return (
        isinstance(failure, ssl.SSLError | asyncpg.InvalidAuthorizationSpecificationError)
        or type(failure) is ConnectionError
    )
