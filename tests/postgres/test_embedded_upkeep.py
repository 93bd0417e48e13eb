"""The private PostgreSQL over time: no zombies, a log that stays small and holds no requests."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psycopg
import pytest

from audit.postgres import embedded
from tests.commandline import audit, lines
from tests.conftest import FAST, execute, task
from tests.needs import needs
from tests.postgres.owners import servers_on
from tests.processes import AUDIT, fetch, serving
from tests.security.canaries import send_canaries
from tests.waiting import wait_until


def log_of(data_dir: Path) -> str:
    return (data_dir / "postgresql.log").read_text(errors="replace")


# --- its log --------------------------------------------------------------------------------------


def test_the_log_is_rotated_by_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_MAX_LOG_BYTES", 10_000)
    with embedded.started(tmp_path, options=FAST) as server:
        for _ in range(3):
            with (tmp_path / "postgresql.log").open("a") as log:
                log.write("x" * 20_000 + "\n")
            server.keep_running()
            execute(server.dsn, "SELECT pg_reload_conf()")
            wait_until(lambda: "received SIGHUP" in log_of(tmp_path))

    # PostgreSQL goes on at the new end of the file, and leaves no hole before it.
    assert "\0" not in log_of(tmp_path)
    assert len(log_of(tmp_path)) < 10_000
    assert 20_000 < (tmp_path / "postgresql.log.1").stat().st_size < 30_000


def test_the_log_of_a_server_that_died_stays(tmp_path: Path) -> None:
    with embedded.started(tmp_path, options=FAST) as server:
        for pid in servers_on(tmp_path):
            os.kill(pid, signal.SIGKILL)

        def has_started_again() -> bool:
            server.keep_running()
            return log_of(tmp_path).count("ready to accept connections") == 2

        wait_until(has_started_again)
        assert [(1,)] == execute(server.dsn, "SELECT 1")

    assert "was not properly shut down" in log_of(tmp_path)


def test_a_failed_statement_leaves_nothing_in_the_log(tmp_path: Path) -> None:
    refused = (
        "SELECT 'canary'::int",
        "SELECT 1 / length('') AS canary",
        "DO $$ BEGIN RAISE WARNING 'canary'; RAISE EXCEPTION 'canary'; END $$",
        "canary",
    )
    with embedded.started(tmp_path, options=FAST) as server:
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            for statement in refused:
                with pytest.raises(psycopg.Error):
                    connection.execute(statement)
            with pytest.raises(psycopg.Error):
                connection.execute("SELECT %s::uuid", ["canary"])
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(server.dsn.replace("audit@", "canary@"))
        execute(server.dsn, "SELECT pg_reload_conf()")
        wait_until(lambda: "received SIGHUP" in log_of(tmp_path))

    # Who connects under another name is logged; that is no request.
    told = [line for line in log_of(tmp_path).splitlines() if "canary" in line]
    assert all('FATAL:  role "canary" does not exist' in line for line in told), told


async def test_refused_requests_leave_nothing_in_the_log(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    # One worker: several notice a new key at different times.
    with serving("--workers", "1", AUDIT_DATA_DIR=str(data_dir)) as (_, url, _):
        scopes = ("--scope", "read", "--scope", "record", "--data-dir", str(data_dir))
        made = await asyncio.to_thread(audit, "keys", "create", "--name", "k", *scopes)
        wait_until(lambda: fetch(f"{url}/api/v1/audit/query") == 401)
        await send_canaries(url, made[1].strip())
        await asyncio.to_thread(
            audit, "record", "-", given=lines(task(request_text="canary")),
            AUDIT_DATA_DIR=str(data_dir),
        )  # fmt: skip

    assert "canary" not in log_of(data_dir)
    assert "ready to accept connections" in log_of(data_dir)


# --- zombies --------------------------------------------------------------------------------------


def zombies_of(pid: int) -> list[str]:
    """The ended children that a process has not collected."""
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            values = dict(line.split(":\t", 1) for line in status.read_text().splitlines())
        except (OSError, ValueError):
            continue
        if values["State"].startswith("Z") and values["PPid"] == str(pid):
            found.append(values["Name"])
    return found


@pytest.fixture
def first_process(tmp_path: Path) -> Iterator[tuple[int, str]]:
    """`audit serve` as the first process of a container: its number out here, and its URL."""
    unshare = str(needs("unshare"))
    as_root = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    inside = [unshare, *as_root, "--pid", "--fork", "--kill-child"]
    if subprocess.run([*inside, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine allows no namespaces")
    with subprocess.Popen(
        [*inside, AUDIT, "serve", "--port", "0", "--data-dir", str(tmp_path / "data")],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[3]
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        yield int(children), url
        os.kill(int(children), signal.SIGINT)
        process.communicate(timeout=60)


def has_new_server(data_dir: Path, old: list[int]) -> bool:
    return servers_on(data_dir) not in ([], old)


def test_the_first_process_of_a_container_reaps_a_killed_server(
    first_process: tuple[int, str], tmp_path: Path
) -> None:
    pid, url = first_process
    for _ in range(2):
        wait_until(lambda: fetch(f"{url}/readyz") == 200)
        killed = servers_on(tmp_path / "data")
        os.kill(killed[0], signal.SIGKILL)
        wait_until(partial(has_new_server, tmp_path / "data", killed))
    wait_until(lambda: fetch(f"{url}/readyz") == 200)

    wait_until(lambda: not zombies_of(pid))


def test_the_first_process_still_replaces_workers(first_process: tuple[int, str]) -> None:
    """What collects adopted processes does not take a worker's end from its supervisor."""
    pid, url = first_process
    wait_until(lambda: fetch(f"{url}/readyz") == 200)
    worker = max(_workers(pid))
    os.kill(worker, signal.SIGKILL)

    wait_until(lambda: _workers(pid) and worker not in _workers(pid))
    wait_until(lambda: fetch(f"{url}/readyz") == 200)
    wait_until(lambda: not zombies_of(pid))


def _workers(pid: int) -> list[int]:
    """The children that are forks of a process, not of another program."""

    def command(one: str | int) -> bytes:
        return Path(f"/proc/{one}/cmdline").read_bytes()

    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if command(child) == command(pid)]


def test_no_zombie_stays_after_a_restart(tmp_path: Path) -> None:
    with serving(AUDIT_DATA_DIR=str(tmp_path / "data")) as (process, url, _):
        wait_until(lambda: fetch(f"{url}/readyz") == 200)
        (server,) = servers_on(tmp_path / "data")
        os.kill(server, signal.SIGKILL)
        wait_until(lambda: servers_on(tmp_path / "data") not in ([], [server]))
        wait_until(lambda: fetch(f"{url}/readyz") == 200)

        wait_until(lambda: not zombies_of(process.pid))
