"""TLS between the service and PostgreSQL, as the DSN asks for it."""

from __future__ import annotations

import ssl
from typing import Any, Literal

import asyncpg

from audit.dsn import Dsn, Host


class _Context(ssl.SSLContext):
    """Verifies the certificate for the name of the host.

    asyncpg connects to an address of the host, and would verify the certificate for the address.
    """

    name: str

    def wrap_bio(
        self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, *args: Any, **more: Any
    ) -> ssl.SSLObject:
        return super().wrap_bio(incoming, outgoing, *args, **{**more, "server_hostname": self.name})


def tls_attempts(dsn: Dsn, host: Host) -> list[ssl.SSLContext | Literal[False]]:
    """Return what to try in order: a context for TLS, or False for no TLS."""
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


def is_about_tls(failure: Exception) -> bool:
    """Return whether the next attempt, with or without TLS, may succeed.

    asyncpg raises a plain ConnectionError if the server has no TLS. `pg_hba.conf` may refuse one of
    the two attempts. A wrong password is not sent twice.
    """
    if isinstance(failure, asyncpg.InvalidPasswordError):
        return False
    return (
        isinstance(failure, ssl.SSLError | asyncpg.InvalidAuthorizationSpecificationError)
        or type(failure) is ConnectionError
    )
