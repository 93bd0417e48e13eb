"""PgBouncer: session pooling works, and other pool modes are refused at the start."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from audit.dsn import parse
from audit.errors import Unavailable, UnsuitableDatabase
from audit.history.service import AuditService
from audit.postgres import embedded, migrate
from audit.postgres.pool import open_pool
from audit.settings import Settings
from tests.commandline import audit
from tests.conftest import execute, task
from tests.needs import needs
from tests.processes import accepts
from tests.waiting import wait_until

CONFIGURATION = """
[databases]
* = host={folder}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = trust
auth_file = {files}/users
admin_users = audit
pool_mode = {mode}
default_pool_size = 20
{more}
"""


@contextlib.contextmanager
def pgbouncer(files: Path, dsn: str, mode: str, more: str = "") -> Iterator[str]:
    """Run PgBouncer in front of a database; yield the DSN through it."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    server = parse(dsn)
    settings = {"folder": server.hosts[0].name, "port": port, "files": files, "mode": mode}
    (files / "ini").write_text(CONFIGURATION.format(**settings, more=more))
    (files / "users").write_text('"audit" ""\n')
    command = [str(needs("pgbouncer")), str(files / "ini")]
    with (files / "log").open("wb") as log:
        process = subprocess.Popen(
            embedded._as_ordinary_user(command), stdout=log, stderr=log, start_new_session=True
        )
    try:
        wait_until(lambda: accepts(port) or process.poll() is not None)
        assert process.poll() is None, (files / "log").read_text()
        yield f"postgresql://audit@127.0.0.1:{port}/{quote(server['dbname'])}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


async def test_session_pooling_keeps_every_setting(dsn: str, tmp_path: Path) -> None:
    with pgbouncer(tmp_path, dsn, "session") as through:
        settings = Settings(pool_size=3, statement_timeout_seconds=7)
        async with open_pool(settings, through) as pool:
            service = AuditService(pool, settings)
            assert 1 == (await service.record([task()])).recorded
            assert 1 == (await service.audit_query()).total
            seen = await pool.fetchrow(
                "SELECT current_setting('plan_cache_mode'), current_setting('jit'),"
                " current_setting('statement_timeout'), current_setting('synchronous_commit'),"
                " current_setting('timezone')"
            )
    assert seen is not None
    assert ("force_custom_plan", "off", "7s", "on", "UTC") == tuple(seen)


async def test_a_session_of_another_client_leaves_nothing_behind(dsn: str, tmp_path: Path) -> None:
    with pgbouncer(tmp_path, dsn, "session", more="min_pool_size = 1") as through:
        for seconds in (3, 9):
            settings = Settings(pool_size=1, statement_timeout_seconds=seconds)
            async with open_pool(settings, through) as pool:
                assert f"{seconds}s" == await pool.fetchval("SHOW statement_timeout")


@pytest.mark.parametrize("mode", ["transaction", "statement"])
@pytest.mark.parametrize("more", ["", "server_round_robin = 1"])
async def test_transaction_and_statement_pooling_are_refused(
    dsn: str, tmp_path: Path, mode: str, more: str
) -> None:
    with pgbouncer(tmp_path, dsn, mode, more) as through:
        with pytest.raises(UnsuitableDatabase, match="pool_mode = session"):
            async with open_pool(Settings(pool_size=2), through):
                pass
        with pytest.raises(UnsuitableDatabase, match="pool_mode = session"):
            await asyncio.to_thread(migrate.status, through)


def test_the_command_says_which_pool_mode_to_set(dsn: str, tmp_path: Path) -> None:
    with pgbouncer(tmp_path, dsn, "transaction") as through:
        for command in (["keys", "list"], ["migrate", "--status"], ["serve", "--port", "0"]):
            code, _, err = audit(*command, "--dsn", through)
            assert (78, True) == (code, "set pool_mode = session in PgBouncer" in err), err


async def test_a_change_to_transaction_pooling_is_a_503_while_serving(
    dsn: str, tmp_path: Path
) -> None:
    with pgbouncer(tmp_path, dsn, "session") as through:
        settings = Settings(pool_size=2, acquire_timeout_seconds=2)
        async with open_pool(settings, through) as pool:
            service = AuditService(pool, settings)
            await service.audit_query()
            address = parse(through).hosts[0]
            execute(
                f"postgresql://audit@{address}/pgbouncer", "SET pool_mode = transaction", "RELOAD"
            )
            await pool.expire_connections()
            outcomes = await asyncio.gather(
                *(service.audit_query() for _ in range(8)), return_exceptions=True
            )
    failures = [one for one in outcomes if isinstance(one, BaseException)]
    assert [] == [one for one in failures if not isinstance(one, Unavailable)]


def test_migrations_run_through_session_pooling(empty_dsn: str, tmp_path: Path) -> None:
    with pgbouncer(tmp_path, empty_dsn, "session") as through:
        assert [] != migrate.apply(through)
        assert all(one.applied for one in migrate.status(through))
    assert 0 == execute(empty_dsn, "SELECT count(*) FROM tasks")[0][0]
