"""The private PostgreSQL: who can reach it, and that it starts whatever happened before."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import psycopg
import pytest

from audit.errors import Unavailable
from audit.postgres import embedded
from tests.conftest import FAST, execute
from tests.postgres.owners import kill, own, said, servers_on
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with one task in it, orderly stopped."""
    data_dir = tmp_path_factory.mktemp("stopped") / "data"
    with embedded.running(data_dir, options=FAST) as dsn:
        execute(dsn, "CREATE TABLE kept (task text)", "INSERT INTO kept VALUES ('kept')")
    return data_dir


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A new data folder with a server on it."""
    data_dir = tmp_path_factory.mktemp("running") / "data"
    with embedded.running(data_dir, options=FAST):
        yield data_dir


@pytest.fixture
def data_dir(stopped: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of that folder; whatever runs on it at the end is killed."""
    data_dir = tmp_path / "data"
    shutil.copytree(stopped, data_dir)
    yield data_dir
    for pid in servers_on(data_dir):
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process of ours that has nothing to do with PostgreSQL."""
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def kept(dsn: str) -> list[tuple[str]]:
    return execute(dsn, "SELECT task FROM kept")


def crash(data_dir: Path, pid: int | str) -> None:
    """Leave what a power failure leaves, with a process number that another process has now."""
    owner = own(data_dir, "--outlived")
    said(owner)
    kill(owner)
    for server in servers_on(data_dir):
        os.kill(server, signal.SIGKILL)
    wait_until(lambda: not servers_on(data_dir))
    # Of a data directory with a long path, the socket and its lock are elsewhere.
    locks = [*data_dir.glob("postgresql/postmaster.pid"), *data_dir.glob("run/.s.PGSQL.*.lock")]
    assert locks
    for path in locks:
        _, *rest = path.read_text().splitlines(keepends=True)
        path.write_text("".join([f"{pid}\n", *rest]))


def mode(path: Path) -> str:
    return f"{path.stat().st_mode & 0o7777:04o}"


def test_only_the_owner_can_reach_data_and_socket(running: Path) -> None:
    inside = ("", "postgresql", "run", "run/.s.PGSQL.5432")

    assert {"0700"} == {mode(running / name) for name in inside}


def test_the_server_listens_on_no_tcp_port(running: Path) -> None:
    (server,) = servers_on(running)
    opened = {str(file.readlink()) for file in Path(f"/proc/{server}/fd").iterdir()}
    connections = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
    tcp = {f"socket:[{line.split()[9]}]" for line in connections.splitlines() if ":" in line}

    assert set() == opened & tcp


def test_every_file_belongs_to_the_caller(running: Path) -> None:
    assert {os.geteuid()} == {path.lstat().st_uid for path in running.rglob("*")}


def test_a_second_server_on_the_same_data_is_refused(running: Path) -> None:
    (first,) = servers_on(running)

    with (
        pytest.raises(Unavailable, match=f"another process runs on {running}; stop it"),
        embedded.running(running),
    ):
        pass
    assert [first] == servers_on(running)


def test_folders_above_the_data_are_left_as_they_are(tmp_path: Path) -> None:
    closed, passable = tmp_path / "closed", tmp_path / "closed" / "passable"
    closed.mkdir(mode=0o700)
    passable.mkdir(mode=0o711)
    folders = [passable, closed, *closed.parents]

    def rights() -> list[tuple[int, int, int]]:
        return [(found.st_mode, found.st_uid, found.st_gid) for found in map(Path.stat, folders)]

    before = rights()
    with embedded.running(passable / "data", options=FAST):
        during = rights()

    assert before == during
    assert before == rights()


def test_data_survive_a_stop_and_a_start(data_dir: Path) -> None:
    with embedded.running(data_dir, options=FAST) as dsn:
        execute(dsn, "INSERT INTO kept VALUES ('new')")
    with embedded.running(data_dir, options=FAST) as dsn:
        assert [("kept",), ("new",)] == kept(dsn)

    assert [] == servers_on(data_dir)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of this")
def test_the_server_of_a_killed_process_stops_by_itself(data_dir: Path) -> None:
    owner = own(data_dir)
    execute(said(owner), "INSERT INTO kept VALUES ('new')")
    kill(owner)
    wait_until(lambda: not servers_on(data_dir))

    assert not (data_dir / "postgresql/postmaster.pid").exists()


def test_a_server_that_outlived_its_process_is_replaced(data_dir: Path) -> None:
    owner = own(data_dir, "--outlived")
    execute(said(owner), "INSERT INTO kept VALUES ('new')")
    kill(owner)
    (orphan,) = servers_on(data_dir)
    with embedded.running(data_dir, options=FAST) as dsn:
        (server,) = servers_on(data_dir)

        assert [("kept",), ("new",)] == kept(dsn)
        assert orphan != server
    assert [] == servers_on(data_dir)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of this")
@pytest.mark.parametrize("options", [["--slow"], ["--slow-later", "--in-background"]])
def test_a_server_does_not_start_after_its_process_was_killed(
    data_dir: Path, options: list[str]
) -> None:
    logged = (data_dir / "postgresql.log").read_text()
    owner = own(data_dir, *options)
    wait_until(lambda: servers_on(data_dir))
    kill(owner)
    wait_until(lambda: not servers_on(data_dir))

    assert logged == (data_dir / "postgresql.log").read_text()


def test_a_server_that_was_still_starting_when_its_process_was_killed_is_replaced(
    data_dir: Path,
) -> None:
    owner = own(data_dir, "--slow", "--outlived")
    wait_until(lambda: servers_on(data_dir))
    kill(owner)
    (orphan,) = servers_on(data_dir)
    assert not (data_dir / "postgresql/postmaster.pid").exists()
    with embedded.running(data_dir, options=FAST) as dsn:
        (server,) = servers_on(data_dir)

        assert [("kept",)] == kept(dsn)
        assert orphan != server


def test_a_session_that_outlived_its_server_is_waited_for(data_dir: Path) -> None:
    owner = own(data_dir, "--outlived")
    with psycopg.connect(said(owner)) as connection:
        session = connection.info.backend_pid
        os.kill(session, signal.SIGSTOP)
        kill(owner)
        (server,) = servers_on(data_dir)
        os.kill(server, signal.SIGKILL)
        threading.Timer(0.5, os.kill, (session, signal.SIGCONT)).start()
        with embedded.running(data_dir, options=FAST) as dsn:
            assert [("kept",)] == kept(dsn)


@pytest.mark.parametrize("seconds", [0.02, 0.4])
def test_a_first_start_that_was_killed_is_completed_by_the_next(
    tmp_path: Path, seconds: float
) -> None:
    owner = own(tmp_path / "data")
    time.sleep(seconds)
    kill(owner)
    with embedded.running(tmp_path / "data", options=FAST) as dsn:
        assert [(1,)] == execute(dsn, "SELECT 1")

    assert [] == servers_on(tmp_path / "data")


@pytest.mark.parametrize("seconds", [0.03, 0.1])
def test_ctrl_c_at_any_moment_leaves_no_server(data_dir: Path, seconds: float) -> None:
    with own(data_dir) as owner:
        time.sleep(seconds)
        owner.send_signal(signal.SIGINT)
        owner.wait()

    assert [] == servers_on(data_dir)


# Python warns of the process object that nobody has waited for.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_just_when_the_server_is_started_leaves_no_server(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt), embedded.running(data_dir, options=FAST):
        pytest.fail("the server runs")

    assert [] == servers_on(data_dir)


def test_the_number_of_a_crashed_server_may_be_another_process_now(
    data_dir: Path, bystander: subprocess.Popen[bytes]
) -> None:
    crash(data_dir, bystander.pid)
    with embedded.running(data_dir, options=FAST) as dsn:
        assert [("kept",)] == kept(dsn)

    assert bystander.poll() is None


def test_the_number_of_a_crashed_server_may_be_ours_now(data_dir: Path) -> None:
    crash(data_dir, os.getpid())
    with embedded.running(data_dir, options=FAST) as dsn:
        assert [("kept",)] == kept(dsn)


def test_an_unreadable_number_of_a_crashed_server_is_forgotten(data_dir: Path) -> None:
    (data_dir / "postgresql/postmaster.pid").write_text("")
    with embedded.running(data_dir, options=FAST) as dsn:
        assert [("kept",)] == kept(dsn)


def test_a_half_made_cluster_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "postgresql.unfinished" / "base").mkdir(parents=True)
    (tmp_path / "postgresql.unfinished" / "PG_VERSION").write_text("not a version")
    with embedded.running(tmp_path, options=FAST) as dsn:
        assert [(1,)] == execute(dsn, "SELECT 1")

    assert {"lock", "postgresql", "postgresql.log", "run"} == {
        path.name for path in tmp_path.iterdir()
    }


@pytest.mark.parametrize(
    "name",
    ["with space", 'größe, "so" 50% & x=1', "/".join(["d" * 60] * 5)],
    ids=["space", "odd", "long"],
)
def test_any_path_can_be_the_data_directory(data_dir: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    moved = data_dir.rename(tmp_path / name)
    with embedded.running(moved, options=FAST) as dsn:
        assert "kept" == asyncio.run(kept_by_asyncpg(dsn))
        assert [("kept",)] == kept(dsn)


async def kept_by_asyncpg(dsn: str) -> str:
    connection = await asyncpg.connect(dsn)
    try:
        return str(await connection.fetchval("SELECT task FROM kept"))
    finally:
        await connection.close()


def test_a_link_and_what_it_points_to_are_the_same_data(data_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(data_dir)
    owner = own(tmp_path / "link", "--outlived")
    said(owner)
    kill(owner)
    with embedded.running(data_dir, options=FAST) as dsn:
        assert [("kept",)] == kept(dsn)

    assert [] == servers_on(data_dir) + servers_on(tmp_path / "link")


def test_a_folder_without_postgresql_is_named(data_dir: Path) -> None:
    with (
        pytest.raises(Unavailable, match="no PostgreSQL is in /usr/share"),
        embedded.running(data_dir, bin_dir=Path("/usr/share")),
    ):
        pass


def test_a_data_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(Unavailable, match=f"cannot use {tmp_path}/file: File exists"),
        embedded.running(tmp_path / "file"),
    ):
        pass


def test_a_setting_that_postgresql_refuses_is_reported(data_dir: Path) -> None:
    with (
        pytest.raises(Unavailable, match=r'(?s)did not start.*"shared_buffers": "none"'),
        embedded.running(data_dir, options={"shared_buffers": "none"}),
    ):
        pass
