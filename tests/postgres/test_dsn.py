"""Both drivers understand a DSN in the same way, and unsupported parameters are refused."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import asyncpg
import psycopg
import pytest

from audit.dsn import parse
from audit.errors import Invalid, Unavailable
from audit.history.service import AuditService
from audit.postgres import embedded
from audit.postgres.pool import open_pool
from audit.settings import Settings
from tests.certificates import make_certificates
from tests.conftest import FAST, execute
from tests.needs import needs

PASSWORD = "Ab/+c= :@?#'\\%"  # noqa: S105 - of a server that the tests make
SEEN = (
    "SELECT current_user::text, current_database()::text, (SELECT ssl FROM pg_stat_ssl WHERE"
    " pid = pg_backend_pid()), inet_server_port(), current_setting('work_mem'),"
    " current_setting('application_name')"
)
HBA = """
local   all all            trust
hostssl all tls   all      scram-sha-256
hostssl all mutual all     cert map=clients
hostnossl all plain all    scram-sha-256
host    all audit all      trust
"""


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in os.environ:
        if name.startswith("PG"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


# --- what is read, and what is refused ------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "hosts", "database"),
    [
        ("postgresql://h1:5432,h2:5433/db", "h1:5432,h2:5433", "db"),
        ("postgresql://h1,h2:5433/db", "h1:5432,h2:5433", "db"),
        ("host=h1,h2 port=6000 dbname=db", "h1:6000,h2:6000", "db"),
        ("postgresql://%2Frun%2Fpg/db", "/run/pg:5432", "db"),
        ("postgresql:///db?host=/run/pg&port=6000", "/run/pg:6000", "db"),
        ("postgresql://[::1]:6000/a%2Fb%3Fc", "[::1]:6000", "a/b?c"),
        ("postgresql://u@h", "h:5432", "u"),
        ("dbname='my db' host=h", "h:5432", "my db"),
    ],
)
def test_every_form_of_a_dsn_is_parsed(text: str, hosts: str, database: str) -> None:
    read = parse(text)
    assert hosts == ",".join(map(str, read.hosts))
    assert database == read["dbname"]
    assert f"{hosts}/{database}" == read.name


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("postgresql://h/db?sslmode", "sslmode: must be followed by"),
        ("postgresql://h/db?channel_binding=require", "channel_binding: must be prefer"),
        ("postgresql://h/db?gssencmode=require", "gssencmode: must be disable"),
        ("postgresql://h/db?require_auth=scram-sha-256", "require_auth: is not supported"),
        ("postgresql://h/db?service=x", "service: is not supported"),
        ("postgresql://h/db?replication=database", "replication: is not supported"),
        ("postgresql://h/db?sslmode=sometimes", "sslmode: must be disable or"),
        ("postgresql://h/db?connect_timeout=soon", "connect_timeout: must be a whole number"),
        ("postgresql://h/db?client_encoding=LATIN1", "client_encoding: must be UTF8"),
        ("postgresql://h/db?nonsense=1", "nonsense: is not a parameter"),
        ("host=h nonsense=1", "nonsense: is not a parameter"),
        ("postgresql://h1,h2:1,h3/db?port=1,2", "port: must be one, or as many"),
        ("host=a,b hostaddr=127.0.0.1", "hostaddr: must have as many"),
        ("postgresql://h:0/db", "port: must be a number"),
        ("postgresql://h/db?sslmode=verify-full", "sslrootcert: is needed"),
        ("postgresql://h/db?sslrootcert=/no/such", "sslrootcert: names a file"),
        ("postgresql://h/db?sslmode=require&sslrootcert=system", "sslmode: must be verify-full"),
        ("", "must look like postgresql://"),
        ("mysql://h/db", "must look like postgresql://"),
    ],
)
def test_an_unsupported_parameter_is_refused_by_name(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint.replace("?", "[?]")):
        parse(text)


async def test_the_service_names_the_wrong_parameter_of_a_dsn() -> None:
    with pytest.raises(Invalid, match="dsn: channel_binding: must be prefer"):
        async with AuditService.open("postgresql://h/db?channel_binding=require"):
            pass


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://u:hush/hush@h/db",
        "postgresql://u:hush@hush@h/db",
        "postgresql://u:%zzhush@h/db",
        "u:hush@h/db",
        "host=h password=a hush=b",
        "host=h password='hush",
        "postgresql://u:a?hush=b@h/db?x",
        "postgresql://[u:hush@h/db",
        "postgresql://u:hush@h/db?nonsense=1",
    ],
)
def test_no_message_shows_a_password(text: str) -> None:
    try:
        shown = repr(parse(text))
    except ValueError as refused:
        shown = str(refused)
    assert "hush" not in shown


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("PGSERVICE", "x", "PGSERVICE: service files are not supported"),
        ("PGREQUIREAUTH", "none", r"PGREQUIREAUTH \(require_auth\): is not supported"),
        ("PGSSLMODE", "sometimes", r"PGSSLMODE \(sslmode\): must be"),
    ],
)
def test_a_variable_is_refused_by_its_name(
    name: str, value: str, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=complaint):
        parse("postgresql://h/db")


def test_variables_fill_in_what_the_dsn_leaves_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PGHOST": "a,b", "PGPORT": "1,2", "PGUSER": "u", "PGPASSWORD": "p"}.items():
        monkeypatch.setenv(name, value)
    read = parse("postgresql:///db")
    assert ("a:1,b:2/db", "u", "p") == (read.name, read["user"], read["password"])


def test_the_password_file_is_read_as_libpq_reads_it(tmp_path: Path) -> None:
    file = tmp_path / ".pgpass"
    file.write_text(
        "# a comment\n"
        "h:5432:db:other:no\n"
        "[odd]:*:*:*:no\n"
        "a\\:b:5432:db:u:with\\:colon\\\\and:rest\n"
        "h:*:db:u:first\n"
        "*:*:*:*:last\n"
    )
    file.chmod(0o600)
    for host, password in {"h": "first", "x": "last", "a:b": "with:colon\\and"}.items():
        read = parse(f"postgresql://u@{quote(host if ':' not in host else 'h')}/db")
        place = read.hosts[0]
        if ":" in host:
            place = type(place)(host, host, 5432)
        assert password == read.password_for(place)
    file.chmod(0o640)
    assert parse("postgresql://u@h/db").password_for(place) is None


# --- both drivers against real servers ------------------------------------------------------------


@dataclass(frozen=True)
class Server:
    port: int
    folder: str
    """Of its socket."""
    files: Path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of the system, which has TLS, on TCP."""
    files = tmp_path_factory.mktemp("tls")
    make_certificates(files)
    (files / "hba").write_text(HBA)
    (files / "ident").write_text("clients client mutual\n")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    options = {
        **FAST,
        "listen_addresses": "127.0.0.1",
        "port": str(port),
        "hba_file": str(files / "hba"),
        "ident_file": str(files / "ident"),
        "ssl": "on",
        "ssl_cert_file": str(files / "server.crt"),
        "ssl_key_file": str(files / "server.key"),
        "ssl_ca_file": str(files / "ca.crt"),
    }
    folder = tmp_path_factory.mktemp("server")
    with embedded.running(folder, bin_dir=needs("postgres").parent, options=options) as socket_dsn:
        dsn = f"{socket_dsn}&port={port}"
        secret = psycopg.sql.Literal(PASSWORD).as_string()
        execute(
            dsn,
            *(f"CREATE ROLE {name} LOGIN PASSWORD {secret}" for name in ("tls", "mutual", "plain")),
            'CREATE DATABASE "a/b?c d"',
        )
        yield Server(port, parse(dsn).hosts[0].name, files)


def by_psycopg(dsn: str) -> tuple[Any, ...]:
    with psycopg.connect(**parse(dsn).parameters()) as connection:  # type: ignore[arg-type]
        row = connection.execute(SEEN).fetchone()
        assert row is not None
        return row


def by_asyncpg(dsn: str) -> tuple[Any, ...]:
    async def ask() -> tuple[Any, ...]:
        async with open_pool(Settings(pool_size=1), dsn) as pool:
            return tuple(await pool.fetchrow(SEEN) or ())

    return asyncio.run(ask())


PARAMETERS = {
    "full": "sslmode=verify-full&sslrootcert={files}/ca.crt",
    "crl": "sslcrl={files}/empty.crl",
    "newest": "ssl_min_protocol_version=TLSv1.3",
    "mutual": "sslmode=verify-ca&sslrootcert={files}/ca.crt"
    "&sslcert={files}/client.crt&sslkey={files}/client.key",
    "alive": "connect_timeout=3&keepalives=1&keepalives_idle=30&keepalives_interval=5"
    "&keepalives_count=3&tcp_user_timeout=9000&gssencmode=prefer&channel_binding=prefer"
    "&load_balance_hosts=random",
}


@pytest.mark.parametrize(
    ("form", "user", "database", "has_tls"),
    [
        ("postgresql://tls:{pw}@localhost:{port}/postgres", "tls", "postgres", True),
        ("postgresql://tls:{pw}@127.0.0.1:{port}/a%2Fb%3Fc%20d", "tls", "a/b?c d", True),
        ("postgresql://plain:{pw}@localhost:{port}/postgres", "plain", "postgres", False),
        ("postgresql://plain:{pw}@localhost:{port}/postgres?sslmode=allow", "plain", "postgres", 0),
        ("postgresql://tls:{pw}@localhost:{port}/postgres?sslmode=allow", "tls", "postgres", True),
        ("postgresql://tls:{pw}@localhost:{port}/postgres?sslmode=require", "tls", "postgres", 1),
        ("postgresql://tls:{pw}@127.0.0.1:{port}/postgres?{full}&{crl}", "tls", "postgres", True),
        (
            "postgresql://tls:{pw}@localhost:{port}/postgres?hostaddr=127.0.0.1&{full}&{newest}",
            "tls", "postgres", True,
        ),
        ("postgresql://mutual@localhost:{port}/postgres?{mutual}", "mutual", "postgres", True),
        ("postgresql://audit@{folder}:{port}/postgres", "audit", "postgres", False),
        ("host={raw} port={port} user=audit dbname='a/b?c d'", "audit", "a/b?c d", False),
        ("postgresql://audit@127.0.0.1:1,localhost:{port}/postgres", "audit", "postgres", True),
        ("postgresql://audit@localhost:{port}/postgres?{alive}", "audit", "postgres", True),
    ],
)  # fmt: skip
def test_both_drivers_connect_in_the_same_way(
    server: Server, form: str, user: str, database: str, has_tls: bool
) -> None:
    dsn = form.format(
        pw=quote(PASSWORD, safe=""),
        port=server.port,
        **{name: text.format(files=server.files) for name, text in PARAMETERS.items()},
        folder=quote(server.folder, safe=""),
        raw=server.folder,
    )
    wanted = (user, database, bool(has_tls))
    assert wanted == by_asyncpg(dsn)[:3]
    assert wanted == by_psycopg(dsn)[:3]


@pytest.mark.parametrize(
    "parameters",
    [
        "sslmode=verify-full&sslrootcert={files}/client.crt",
        "sslmode=verify-full&sslrootcert={files}/ca.crt&sslcrl={files}/server.crl",
        "sslmode=require&sslrootcert={files}/client.crt",
        "sslmode=require&ssl_max_protocol_version=TLSv1.2&ssl_min_protocol_version=TLSv1.3",
    ],
)
def test_neither_driver_accepts_a_bad_certificate(server: Server, parameters: str) -> None:
    dsn = (
        f"postgresql://tls:{quote(PASSWORD, safe='')}@localhost:{server.port}/postgres?"
        + parameters.format(files=server.files)
    )
    with pytest.raises((Unavailable, OSError, asyncpg.PostgresError)):
        by_asyncpg(dsn)
    with pytest.raises(psycopg.OperationalError):
        by_psycopg(dsn)


def test_options_and_names_reach_the_server(server: Server) -> None:
    dsn = (
        f"postgresql://audit@localhost:{server.port}/postgres"
        "?options=-c%20work_mem%3D7MB&application_name=mine"
    )
    assert ("7MB", "mine") == by_asyncpg(dsn)[-2:]
    assert ("7MB", "mine") == by_psycopg(dsn)[-2:]


def test_variables_give_password_and_tls(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    monkeypatch.setenv("PGSSLMODE", "verify-full")
    monkeypatch.setenv("PGSSLROOTCERT", str(server.files / "ca.crt"))
    dsn = f"postgresql://tls@localhost:{server.port}/postgres"
    assert ("tls", "postgres", True) == by_asyncpg(dsn)[:3]
    assert ("tls", "postgres", True) == by_psycopg(dsn)[:3]


def test_the_password_file_of_the_home_folder_is_used(server: Server, tmp_path: Path) -> None:
    escaped = PASSWORD.replace("\\", "\\\\").replace(":", "\\:")
    file = tmp_path / ".pgpass"
    file.write_text(f"localhost:{server.port}:*:tls:{escaped}\n")
    file.chmod(0o600)
    dsn = f"postgresql://tls@localhost:{server.port}/postgres"
    assert "tls" == by_asyncpg(dsn)[0]
    assert "tls" == by_psycopg(dsn)[0]


def test_the_certificates_of_the_system_are_trusted(server: Server) -> None:
    dsn = (
        f"postgresql://tls:{quote(PASSWORD, safe='')}@localhost:{server.port}/postgres"
        "?sslrootcert=system"
    )
    status = [sys.executable, "-m", "audit", "migrate", "--status", "--dsn", dsn]
    listed = [sys.executable, "-m", "audit", "keys", "list", "--dsn", dsn]
    for command in (status, listed):
        for root, is_trusted in (("ca.crt", True), ("client.crt", False)):
            environment = {**os.environ, "SSL_CERT_FILE": str(server.files / root)}
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=False
            )
            # An empty database lets in, and then refuses what needs a schema.
            assert is_trusted == ("does not answer" not in done.stderr), done.stderr
