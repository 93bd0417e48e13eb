"""Which database a command uses: it names it, makes none, and shares the one that runs."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from audit.errors import Unavailable
from audit.postgres import embedded
from tests.commandline import ENVIRONMENT, HIDDEN, UNREACHABLE, command, ended
from tests.conftest import FAST, execute, task
from tests.postgres.owners import kill, own, said, servers_on
from tests.processes import AUDIT, serving
from tests.waiting import wait_until

CREATE = ("keys", "create", "--scope", "read", "--name")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with one task, on which nothing runs."""
    data_dir = tmp_path_factory.mktemp("cluster") / "data"
    assert ended(command("demo", "--tasks", "1", AUDIT_DATA_DIR=str(data_dir)))[0] == 0
    return data_dir


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A data directory that `audit serve` runs on, and its URL."""
    data_dir = tmp_path_factory.mktemp("served") / "data"
    with serving(AUDIT_DATA_DIR=str(data_dir)) as (_, url, _):
        yield data_dir, url


@pytest.mark.parametrize(
    "arguments",
    [
        "keys list", "keys create --name x --scope read", "keys revoke x", "record -",
        "counts --check", "counts --rebuild", "migrate", "migrate --status",
    ],
)  # fmt: skip
def test_a_command_without_a_database_makes_none(arguments: str, tmp_path: Path) -> None:
    data_dir = tmp_path / "folder" / "data"
    code, _, stderr = ended(command(*arguments.split(), AUDIT_DATA_DIR=str(data_dir)))

    assert code == 69
    assert stderr == (
        f"audit: there is no database in {data_dir}: give --dsn or AUDIT_DSN, or start"
        " `audit serve`, which creates an embedded PostgreSQL there\n"
    )
    assert [] == list(tmp_path.iterdir())


def test_a_folder_where_a_first_start_failed_has_no_database(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()

    code, _, stderr = ended(command("keys", "list", AUDIT_DATA_DIR=str(tmp_path)))

    assert code == 69
    assert "there is no database" in stderr


def test_an_existing_cluster_is_used_and_named(cluster: Path) -> None:
    code, out, stderr = ended(command("counts", "--check", AUDIT_DATA_DIR=str(cluster)))

    assert (0, "all counts are exact\n") == (code, out)
    assert f"audit: database: embedded PostgreSQL in {cluster}\n" == stderr
    assert [] == servers_on(cluster)
    assert not (cluster / "server").exists()


def test_a_database_is_named_without_its_password(dsn: str) -> None:
    code, _, stderr = ended(command("keys", "list", AUDIT_DSN=UNREACHABLE))

    assert code == 69
    assert stderr.startswith("audit: database: PostgreSQL 127.0.0.1:1/history\naudit: the database")
    assert HIDDEN not in stderr

    secret = dsn.replace("audit@", f"audit:{HIDDEN}@")
    code, out, stderr = ended(command("keys", "list", "--json", AUDIT_DSN=secret))
    assert (0, []) == (code, json.loads(out))
    assert stderr.startswith("audit: database: PostgreSQL ")
    assert len(stderr.splitlines()) == 1
    assert HIDDEN not in stderr


# --- while a service runs -------------------------------------------------------------------------


def test_a_key_made_in_a_second_terminal_is_good_in_the_first(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    data_dir = tmp_path_factory.mktemp("terminals") / "data"
    variables = {"AUDIT_DATA_DIR": str(data_dir)}
    with serving("--demo", AUDIT_DATA_DIR=str(data_dir)) as (_, url, _):
        code, key, _ = ended(command(*CREATE, "dashboard", **variables))
        assert code == 0
        headers = {"Authorization": f"Bearer {key.strip()}"}
        question = urllib.request.Request(f"{url}/api/v1/audit/query", headers=headers)
        with urllib.request.urlopen(question, timeout=20) as answer:
            assert json.load(answer)["total"] == 20_000

        wait_until(lambda: _is_refused(url))
        assert "dashboard" in ended(command("keys", "list", **variables))[1]


def _is_refused(url: str) -> bool:
    try:
        urllib.request.urlopen(f"{url}/api/v1/audit/query", timeout=20).close()
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code == 401
    return False


def test_other_commands_use_the_database_of_the_service(
    served: tuple[Path, str], tmp_path: Path
) -> None:
    data_dir, url = served
    (tmp_path / "file").write_text(json.dumps(task()))
    variables = {"AUDIT_DATA_DIR": str(data_dir)}
    (server,) = servers_on(data_dir)

    recorded = ended(command("record", tmp_path / "file", **variables))
    assert (0, "recorded 1, duplicates 0\n") == recorded[:2]
    assert 0 == ended(command("counts", "--check", **variables))[0]
    assert 0 == ended(command("migrate", **variables))[0]
    assert 0 == ended(command("demo", "--tasks", "4", **variables))[0]

    with urllib.request.urlopen(f"{url}/api/v1/audit/query", timeout=20) as answer:
        assert json.load(answer)["total"] == 5
    assert [server] == servers_on(data_dir)


def test_only_the_owner_can_read_where_the_server_is(served: tuple[Path, str]) -> None:
    assert 0o600 == (served[0] / "server").stat().st_mode & 0o777


def test_a_second_service_on_the_same_data_is_refused(served: tuple[Path, str]) -> None:
    data_dir, _ = served
    code, _, stderr = ended(command("serve", "--port", "0", AUDIT_DATA_DIR=str(data_dir)))

    assert code == 69
    assert f"another process runs on {data_dir}" in stderr


def test_a_path_that_is_too_long_for_a_socket_is_shared_too(tmp_path: Path) -> None:
    data_dir = tmp_path.joinpath(*["d" * 60] * 3)
    with serving(AUDIT_DATA_DIR=str(data_dir)):
        code, out, _ = ended(command("counts", "--check", AUDIT_DATA_DIR=str(data_dir)))

    assert (0, "all counts are exact\n") == (code, out)


def test_a_command_waits_for_a_service_that_is_starting(tmp_path: Path) -> None:
    """Its cluster does not exist yet, then its schema does not."""
    variables = {"AUDIT_DATA_DIR": str(tmp_path / "data")}
    with serving_soon(tmp_path / "data") as service:
        code, out, stderr = ended(command("keys", "list", "--json", **variables))
        service.send_signal(signal.SIGINT)
        service.communicate(timeout=60)

    assert (0, []) == (code, json.loads(out or "null")), stderr


def serving_soon(data_dir: Path) -> subprocess.Popen[str]:
    """Start a service on a new data directory; return when it has locked it."""
    process = command("serve", "--port", "0", AUDIT_DATA_DIR=str(data_dir))
    wait_until((data_dir / "lock").exists)
    time.sleep(0.05)
    return process


def test_a_schema_that_is_behind_is_not_moved_under_a_service(tmp_path: Path) -> None:
    with embedded.started(tmp_path, options=FAST):
        code, _, stderr = ended(command("keys", "list", AUDIT_DATA_DIR=str(tmp_path)))

    assert code == 78
    assert "the database lacks migrations: 0001_tasks" in stderr


def test_a_service_that_stops_meanwhile_is_reported_in_one_line(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    with serving(AUDIT_DATA_DIR=str(data_dir)) as (service, _, _):
        recording = subprocess.Popen(
            [AUDIT, "record", "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**ENVIRONMENT, "AUDIT_DATA_DIR": str(data_dir)},
        )
        assert recording.stderr is not None
        assert recording.stderr.readline().startswith("audit: database: ")
        service.send_signal(signal.SIGINT)
        service.wait(60)
        _, stderr = recording.communicate(json.dumps(task()), timeout=60)

    assert recording.returncode == 69
    assert len(stderr.splitlines()) == 1
    assert "Traceback" not in stderr


# --- while another command runs -------------------------------------------------------------------


def test_commands_at_the_same_time_share_one_server(cluster: Path) -> None:
    variables = {"AUDIT_DATA_DIR": str(cluster)}
    together = [command("migrate", "--status", "--json", **variables) for _ in range(4)]
    results = [ended(one) for one in together]

    assert [0] * 4 == [code for code, _, _ in results], results
    assert [] == servers_on(cluster)


def test_a_server_stops_when_its_users_are_done(tmp_path: Path) -> None:
    """A command that is done leaves its server to another that uses it."""
    users: list[list[tuple[int]]] = []

    def use() -> None:
        with embedded.used(tmp_path, create=False) as dsn:
            time.sleep(1)
            users.append(execute(dsn, "SELECT 1"))

    with embedded.used(tmp_path, create=True, options=FAST):
        # A lock belongs to an open file: a thread has its own.
        user = threading.Thread(target=use)
        user.start()
        time.sleep(0.5)
    user.join()

    assert [[(1,)]] == users


def test_the_server_file_of_a_killed_process_is_ignored(tmp_path: Path) -> None:
    owner = own(tmp_path / "data")
    said(owner)
    kill(owner)
    assert (tmp_path / "data/server").exists()

    with embedded.used(tmp_path / "data", create=False, options=FAST) as dsn:
        assert [(1,)] == execute(dsn, "SELECT 1")


def test_a_command_gives_up_waiting_for_a_server_that_is_never_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_START_SECONDS", 0.3)
    with (
        embedded._locked(tmp_path),
        pytest.raises(Unavailable, match="another process runs on"),
        embedded.used(tmp_path, create=False),
    ):
        pass


def test_a_folder_of_others_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, _, stderr = ended(command("keys", "list", AUDIT_DATA_DIR=str(tmp_path / "file" / "data")))

    assert code == 69
    assert len(stderr.splitlines()) == 1
