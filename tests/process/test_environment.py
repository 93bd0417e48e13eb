"""The environment of the process: variables of others, no home folder, addresses to listen on."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import urllib.request
from pathlib import Path

import pytest

from audit.settings import Settings
from tests.commandline import audit
from tests.conftest import execute
from tests.needs import needs
from tests.processes import AUDIT, serving

NAMELESS = ("unshare", "--user", "--map-user", "12345", "--map-group", "12345")
LINK = "tcp://10.96.12.7:8080"


def nameless(*command: str | Path, **variables: str) -> tuple[int, str, str]:
    """Run a command as a user id that has no name, with only these variables and the PATH."""
    needs("unshare")
    done = subprocess.run(
        [*NAMELESS, *map(str, command)],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"], **variables},
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


# --- variables ------------------------------------------------------------------------------------


def test_what_kubernetes_sets_for_a_service_named_audit_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in {
        "AUDIT_PORT": LINK,
        "AUDIT_SERVICE_HOST": "10.96.12.7",
        "AUDIT_SERVICE_PORT": "8080",
        "AUDIT_SERVICE_PORT_HTTP": "8080",
        "AUDIT_PORT_8080_TCP": LINK,
        "AUDIT_PORT_8080_TCP_PROTO": "tcp",
        "AUDIT_PORT_8080_TCP_PORT": "8080",
        "AUDIT_PORT_8080_TCP_ADDR": "10.96.12.7",
    }.items():
        monkeypatch.setenv(name, value)
    assert 8080 == Settings().port
    assert 9000 == Settings(port=9000).port
    assert {True} == {f"AUDIT_PORT={LINK} is ignored" in line for line in caplog.messages}


def test_commands_run_beside_a_service_named_audit(dsn: str) -> None:
    code, _, err = audit("migrate", "--status", "--dsn", dsn, AUDIT_PORT=LINK)
    assert (0, 1) == (code, err.count("AUDIT_PORT"))
    with serving("--dsn", dsn, AUDIT_PORT=LINK) as (_, url, _):
        assert 200 == urllib.request.urlopen(f"{url}/readyz").status


def test_a_port_that_is_none_is_still_refused() -> None:
    code, _, err = audit("migrate", "--status", AUDIT_PORT="tcp://")
    assert (2, True) == (code, "AUDIT_PORT" in err)


def test_a_misspelt_variable_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AUDIT_POOLSIZE", "3")
    monkeypatch.setenv("AUDIT_TEAM", "payments")
    Settings()
    assert [
        "AUDIT_POOLSIZE is not a setting and has no effect; is it AUDIT_POOL_SIZE?"
    ] == caplog.messages


@pytest.mark.parametrize("value", ["off", "local", "remote_write"])
def test_a_write_is_never_acknowledged_before_it_is_durable(value: str) -> None:
    code, _, err = audit("keys", "list", AUDIT_SYNCHRONOUS_COMMIT=value)
    assert (2, True) == (code, "AUDIT_SYNCHRONOUS_COMMIT" in err)


def test_the_setting_of_synchronous_commit_reaches_the_sessions(dsn: str) -> None:
    name = execute(dsn, "SELECT current_database()")[0][0]
    execute(dsn, f"ALTER DATABASE {name} SET synchronous_commit = off")
    execute(
        dsn,
        "CREATE TABLE seen (value text)",
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " INSERT INTO seen VALUES (current_setting('synchronous_commit')); RETURN NULL; END $$",
        "CREATE TRIGGER note AFTER INSERT ON task_keys EXECUTE FUNCTION note()",
    )
    for options in ((), ("--synchronous-commit", "remote_apply")):
        with serving("--dsn", dsn, *options) as (_, url, _):
            request = urllib.request.Request(
                f"{url}/api/v1/audit/tasks",
                b'{"request_text": "x"}',
                {"Content-Type": "application/json"},
            )
            assert 201 == urllib.request.urlopen(request).status
    seen = execute(dsn, "SELECT DISTINCT value FROM seen ORDER BY value")
    assert [("on",), ("remote_apply",)] == seen
    execute(dsn, "DROP FUNCTION note CASCADE", "DROP TABLE seen")
    execute(dsn, f"ALTER DATABASE {name} RESET synchronous_commit")


# --- no home, no name -----------------------------------------------------------------------------


def homes(tmp_path: Path) -> list[dict[str, str]]:
    """No home folder at all, one that cannot be entered, and one that is not there."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    return [{}, {"HOME": str(closed)}, {"HOME": str(tmp_path / "missing")}]


def test_with_a_dsn_neither_a_home_folder_nor_a_name_is_needed(
    empty_dsn: str, tmp_path: Path
) -> None:
    for home in homes(tmp_path):
        for command in (["migrate"], ["keys", "list"]):
            code, _, err = nameless(AUDIT, *command, "--dsn", empty_dsn, **home)
            assert (0, home, command) == (code, home, command), err
        given = [f"HOME={home['HOME']}"] if home else ["-u", "HOME"]
        with serving("--dsn", empty_dsn, audit=[*NAMELESS, "env", *given, AUDIT]) as (_, url, _):
            assert 200 == urllib.request.urlopen(f"{url}/readyz").status


def test_help_needs_no_home_folder() -> None:
    assert 0 == nameless(AUDIT, "serve", "--help")[0]


def test_what_is_missing_is_said_where_it_is_needed(tmp_path: Path) -> None:
    code, _, err = nameless(AUDIT, "demo", "--tasks", "1")
    assert (69, True) == (code, "give another --data-dir, or a --dsn" in err), err
    code, _, err = nameless(AUDIT, "keys", "list", "--dsn", "postgresql://127.0.0.1:1/postgres")
    assert (2, True) == (code, "user: is missing, and the user id 12345 has no name" in err), err
    assert [] == list(tmp_path.iterdir())


# --- where it listens -----------------------------------------------------------------------------


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    ("host", "reached"),
    [
        ("::", ["127.0.0.1", "[::1]"]),
        ("[::]", ["127.0.0.1", "[::1]"]),
        ("0.0.0.0", ["127.0.0.1"]),
        ("::1", ["[::1]"]),
        ("127.0.0.1", ["127.0.0.1"]),
        ("localhost", ["localhost"]),
    ],
)
def test_a_host_is_listened_on(dsn: str, host: str, reached: list[str]) -> None:
    if ":" in host and not has_ipv6():
        pytest.skip("no IPv6 on this machine")
    with serving("--dsn", dsn, "--insecure", "--host", host) as (_, url, _):
        port = url.rpartition(":")[2]
        for address in reached:
            assert 200 == urllib.request.urlopen(f"http://{address}:{port}/healthz").status


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1", "a" * 70])
def test_a_host_that_is_not_ours_is_refused_in_one_line(dsn: str, host: str) -> None:
    code, _, err = audit("serve", "--dsn", dsn, "--host", host, "--port", "0")
    assert (69, 1, True) == (code, err.count("\n"), f"cannot listen on {host}" in err), err


def test_a_variable_does_not_lead_to_another_server_than_the_embedded_one(tmp_path: Path) -> None:
    data = tmp_path / "data"
    code, _, err = audit("demo", "--tasks", "1", "--data-dir", str(data), PGHOSTADDR="127.0.0.1")
    assert (0, True) != (code, "PGHOSTADDR" not in err)
    assert "PGHOSTADDR: must not be set" in err
    shutil.rmtree(data, ignore_errors=True)
