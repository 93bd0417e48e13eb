"""The compose file with a standby, without a container engine: its scripts and settings work."""

from __future__ import annotations

import json
import os
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from audit.dsn import parse
from audit.postgres import embedded, migrate
from audit.settings import Settings
from tests.conftest import FAST, POSTGRES, execute
from tests.processes import serving
from tests.waiting import wait_until

FOLDER = Path(__file__).parents[2] / "docs/deploy/replicas"
SERVICES: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]
BINARIES = POSTGRES or embedded.binaries()


def test_it_has_a_primary_a_standby_and_two_services() -> None:
    assert {"primary", "standby", "audit", "audit-standby"} == set(SERVICES)
    for service in SERVICES.values():
        assert set(service.get("depends_on", {})) <= set(SERVICES)
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            assert not source.startswith(".") or (FOLDER / source).is_file()
    assert all(os.access(script, os.X_OK) for script in FOLDER.glob("*.sh"))


def test_each_service_has_settings_that_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", "Ab/+c=")
    for name in ("audit", "audit-standby"):
        environment = SERVICES[name]["environment"]
        given = {
            variable.removeprefix("AUDIT_").lower(): value
            for variable, value in environment.items()
            if variable != "PGPASSWORD"
        }

        assert set(given) <= set(Settings.model_fields)
        assert {parse(given["dsn"])["password"]} == {"Ab/+c="}
        assert Settings(**given).dsn
        assert (FOLDER / SERVICES[name]["build"] / "Dockerfile").is_file()


@contextmanager
def standby(data: Path, run: Path, primary: str) -> Iterator[str]:
    """Run the script of the standby as its container does, but with trust and Unix sockets."""
    options = {**FAST, "listen_addresses": "", "unix_socket_directories": str(run)}
    given = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
    command = ["sh", str(FOLDER / "standby.sh"), *SERVICES["standby"]["command"], *given]
    environment = {
        "PATH": f"{BINARIES}:{os.environ['PATH']}",
        "PGDATA": str(data),
        "PGHOST": parse(primary).hosts[0].name,
        "PGUSER": embedded.USER,
    }
    with subprocess.Popen(
        embedded._stopping_with_us(embedded._as_ordinary_user(command)), env=environment
    ) as process:
        try:
            dsn = f"host={run} user={embedded.USER} dbname=postgres"
            wait_until(lambda: _answers(dsn), 30)
            yield dsn
        finally:
            process.terminate()


def _answers(dsn: str) -> bool:
    try:
        return execute(dsn, "SELECT pg_is_in_recovery()") == [(True,)]
    except Exception:  # noqa: BLE001 - it is starting
        return False


def test_the_standby_copies_the_primary_once_and_the_service_runs_on_it(tmp_path: Path) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    run.mkdir()
    # A copy that was interrupted.
    (tmp_path / "data.copy").mkdir()
    (tmp_path / "data.copy" / "PG_VERSION").write_text("")
    with embedded.started(tmp_path / "primary", bin_dir=POSTGRES, options=FAST) as primary:
        migrate.apply(primary.dsn)
        with standby(data, run, primary.dsn):
            assert not (tmp_path / "data.copy").exists()
        with standby(data, run, primary.dsn) as dsn:
            streaming = "SELECT application_name FROM pg_stat_replication WHERE state = 'streaming'"
            wait_until(lambda: execute(primary.dsn, streaming) == [("standby",)])
            with (
                serving("--dsn", dsn, "--primary-url", "http://127.0.0.1:8080") as (_, url, _),
                urllib.request.urlopen(f"{url}/readyz") as response,
            ):
                assert json.load(response)["role"] == "standby"


def test_the_primary_lets_standbys_connect_with_a_password(tmp_path: Path) -> None:
    (tmp_path / "pg_hba.conf").write_text("host all all all scram-sha-256\n")

    subprocess.run([FOLDER / "primary.sh"], env={"PGDATA": str(tmp_path)}, check=True)

    assert [
        "host all all all scram-sha-256",
        "host replication all all scram-sha-256",
    ] == (tmp_path / "pg_hba.conf").read_text().splitlines()
