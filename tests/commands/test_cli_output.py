"""What commands print, into a pipe, a file, a closed or full output; and how they end."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from audit.access.identity import Scope
from audit.access.keys import create_key
from audit.commands.exit_codes import ExitCode
from audit.postgres import migrate
from audit.postgres.pool import open_pool
from audit.settings import Settings
from tests.commandline import ENVIRONMENT, audit, command, ended, lines
from tests.conftest import execute, task
from tests.processes import AUDIT, accepts, fetch, serving
from tests.waiting import wait_until

NARROW = {"COLUMNS": "30", "TERM": "dumb"}
NAME = "deploy_service_of_the_[red]eastern[/red]_region_" + "x" * 60


def shell(line: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash, in which `audit` is the command."""
    return subprocess.run(
        ["bash", "-c", line.replace("audit ", f"{AUDIT} ", 1)],
        env={**ENVIRONMENT, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# --- tables and JSON ------------------------------------------------------------------------------


def wrong_counts(dsn: str) -> None:
    """Record a task whose count is then wrong."""
    audit("record", "-", AUDIT_DSN=dsn, given=lines(task(services_touched=[NAME, "[/x]", "a\tb"])))
    execute(
        dsn,
        "SELECT sequence_task_events(100000)",
        "SELECT fold_task_counts(100000)",
        "UPDATE task_count_base SET n = n + 1",
    )


@pytest.mark.parametrize("name", ["x" * 100, "a.b@c-d"])
def test_a_list_of_keys_is_never_truncated(dsn: str, name: str) -> None:
    assert audit("keys", "create", "--name", name, "--scope", "read", AUDIT_DSN=dsn)[0] == 0
    _, table, _ = audit("keys", "list", AUDIT_DSN=dsn, **NARROW)

    header, row = table.splitlines()
    assert header.split() == ["name", "scopes", "project", "created", "state"]
    assert re.fullmatch(rf"{name}  read +all +\d{{4}}-\d\d-\d\d  valid until .*", row)


def test_a_list_of_keys_is_json_for_programs(dsn: str) -> None:
    options = ("--scope", "record", "--scope", "read", "--expires", "never", "--json")
    code, made, _ = audit("keys", "create", "--name", "bot", *options, AUDIT_DSN=dsn)
    key = json.loads(made)
    assert (0, "bot", ["read", "record"], None) == (
        code, key["name"], key["scopes"], key["expires_at"],
    )  # fmt: skip
    assert key["key"].startswith("taskaudit_")
    audit("keys", "create", "--name", "old", "--scope", "read", AUDIT_DSN=dsn)
    audit("keys", "revoke", "old", AUDIT_DSN=dsn)

    _, listed, _ = audit("keys", "list", "--json", AUDIT_DSN=dsn)
    valid = {one["name"]: one["is_valid"] for one in json.loads(listed)}
    assert {"bot": True, "old": False} == valid
    assert key["key"] not in listed


def test_counts_that_differ_are_shown_whole_and_as_json(dsn: str) -> None:
    wrong_counts(dsn)
    code, table, stderr = audit("counts", "--check", AUDIT_DSN=dsn, **NARROW)
    assert (65, "audit: the counts differ; `audit counts --rebuild` repairs them\n") == (
        code,
        stderr,
    )
    assert any(line.startswith(NAME) for line in table.splitlines())
    assert any(line.startswith("[/x] ") for line in table.splitlines())
    assert any(line.startswith(r"a\tb ") for line in table.splitlines())

    code, text, _ = audit("counts", "--check", "--json", AUDIT_DSN=dsn)
    differences = json.loads(text)
    assert code == 65
    assert {"", NAME, "[/x]", "a\tb"} == {one["service"] for one in differences}
    assert {(1, 2)} == {(one["expected"], one["counted"]) for one in differences}


def test_exact_counts_are_an_empty_array(dsn: str) -> None:
    assert (0, "[]\n", "") == audit("counts", "--check", "--json", AUDIT_DSN=dsn)


def test_the_state_of_migrations_is_json_for_programs(dsn: str) -> None:
    _, text, _ = audit("migrate", "--status", "--json", AUDIT_DSN=dsn)

    expected = [{"name": one.name, "applied": one.applied} for one in migrate.status(dsn)]
    assert expected == json.loads(text)


@pytest.mark.parametrize("arguments", ["migrate --json", "counts --rebuild --json"])
def test_json_is_refused_by_commands_that_print_no_table(arguments: str, dsn: str) -> None:
    code, out, stderr = audit(*arguments.split(), AUDIT_DSN=dsn)

    assert (2, "") == (code, out)
    assert "--json needs" in stderr


def test_markup_in_a_message_is_shown_as_it_is(dsn: str) -> None:
    code, _, stderr = audit("keys", "revoke", "[bold]x[/y]", AUDIT_DSN=dsn)

    assert code == 2
    assert "there is no key '[bold]x[/y]'" in stderr


# --- outputs and inputs that fail -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "code", "part"),
    [
        ("audit keys list > /dev/full", 74, "cannot read or write: No space left on device"),
        ("audit keys list >&-", 74, "cannot read or write: Bad file descriptor"),
        ("audit openapi > /dev/full", 74, "cannot read or write: No space left on device"),
        ("audit --help > /dev/full", 74, "cannot read or write: No space left on device"),
        ("audit record - <&-", 2, "-: Bad file descriptor"),
        ("audit record /", 2, "/: Is a directory"),
        ("audit record --url http://h:99999 -", 2, "--url"),
        ("audit record --url http:///tasks -", 2, "--url"),
        ("audit record --url http://u:canary@h -", 2, "must not have a user or password"),
        ("audit record --url 'http://h/?key=canary' -", 2, "without ? or #"),
        ("AUDIT_KEY='canary x' audit record --url http://h -", 2, "must be a single API key"),
    ],
)
def test_what_cannot_be_read_or_written_is_reported_in_one_line(
    dsn: str, line: str, code: int, part: str
) -> None:
    done = shell(line, AUDIT_DSN=dsn)
    rest = [one for one in done.stderr.splitlines() if not one.startswith("audit: database: ")]

    assert code == done.returncode, done.stderr
    assert 1 == len(rest), done.stderr
    assert part in rest[0]
    assert "canary" not in rest[0]


def test_a_key_that_could_not_be_shown_is_revoked(dsn: str) -> None:
    done = shell("audit keys create --name lost --scope read > /dev/full", AUDIT_DSN=dsn)

    assert 74 == done.returncode
    assert "so lost is revoked" in done.stderr
    assert [(True,)] == execute(dsn, "SELECT revoked_at IS NOT NULL FROM access_keys")


def test_a_closed_pipe_ends_a_command_in_silence() -> None:
    done = shell("audit demo --print --tasks 100000 | head -1; exit ${PIPESTATUS[0]}")

    assert (141, "", 1) == (done.returncode, done.stderr, len(done.stdout.splitlines()))


def test_a_service_runs_without_any_output(dsn: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with (
        Path("/dev/full").open("w") as full,
        subprocess.Popen(
            [AUDIT, "serve", "--port", str(port), "--dsn", dsn], stdout=full, stderr=full
        ) as process,
    ):
        wait_until(lambda: accepts(port))
        assert 200 == fetch(f"http://127.0.0.1:{port}/readyz")
        process.send_signal(signal.SIGINT)

    assert 0 == process.returncode


def test_empty_files_and_line_breaks_around_a_key_are_fine(dsn: str, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "bytes").write_bytes(os.urandom(1000))
    with serving(AUDIT_DSN=dsn) as (_, url, _):
        variables = {"AUDIT_URL": url, "AUDIT_KEY": "taskaudit_x\n"}
        result = audit("record", str(tmp_path / "empty"), **variables)
        assert (0, "recorded 0, duplicates 0\n", "") == result
        assert 0 == audit("record", "-", given=lines(task()), **variables)[0]
        code, _, stderr = audit("record", str(tmp_path / "bytes"), **variables)

    assert (65, 1) == (code, len(stderr.splitlines()))


# --- the banner -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "http://127.0.0.1:"),
        ("0.0.0.0", "http://127.0.0.1:"),
        ("::", "http://127.0.0.1:"),
        ("::1", "http://[::1]:"),
    ],
)
def test_the_banner_shows_an_address_that_can_be_opened(dsn: str, host: str, address: str) -> None:
    with serving("--host", host, "--insecure", AUDIT_DSN=dsn) as (_, url, printed):
        shown = re.findall(r"http://[^ ')]*", "\n".join(printed))
        done = shell(f"audit record --url {url} /dev/null")

    assert url.startswith(address)
    assert all(one.startswith(url) for one in shown)
    assert 0 == done.returncode


async def test_the_banner_of_a_service_with_keys_shows_how_to_send_one(dsn: str) -> None:
    async with open_pool(Settings(pool_size=1), dsn) as pool:
        key, _ = await create_key(pool, "reader", frozenset([Scope.READ]))
    with serving(AUDIT_DSN=dsn) as (_, _, printed):
        curls = [line for line in printed if line.startswith("  curl ")]
        answers = [shell(f"curl -sS {line[7:]}", AUDIT_KEY=key).stdout for line in curls]

    assert 3 == len(curls)
    assert all('-H "Authorization: Bearer $AUDIT_KEY"' in line for line in curls)
    assert [0, 0, 0] == [json.loads(answer)["total"] for answer in answers]


# --- signals and terminals ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [(AUDIT, "keys", "list"), (sys.executable, "-m", "audit", "openapi")]
)
def test_ctrl_c_while_a_command_starts_is_silent(
    arguments: Sequence[str | Path], tmp_path: Path
) -> None:
    """Until Python runs our code, which takes it some 30 ms, no program can handle a signal."""

    def run(interrupt_after_seconds: float | None) -> tuple[int, str, float]:
        """Return the exit status, what was printed, and the seconds that our code ran."""
        with subprocess.Popen(
            arguments,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**ENVIRONMENT, "AUDIT_DATA_DIR": str(tmp_path)},
        ) as process:
            while not runs_our_code(process.pid) and process.poll() is None:
                pass
            began = time.monotonic()
            if interrupt_after_seconds is not None:
                time.sleep(interrupt_after_seconds)
                process.send_signal(signal.SIGINT)
            _, stderr = process.communicate(timeout=60)
        return process.returncode, stderr, time.monotonic() - began

    seconds = run(None)[2]
    results = [run(seconds * eighth / 8)[:2] for eighth in range(8)]

    interrupted = [one for one in results if one[0] == 130]
    assert {(130, "")} == set(interrupted)
    # The others had ended before the signal came.
    assert all("Traceback" not in stderr for _, stderr in results)


def runs_our_code(pid: int) -> bool:
    """Whether a process has begun to import what commands need, which is most of its start."""
    try:
        return "pydantic_core" in Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return False


def test_log_lines_stand_above_the_progress_bar() -> None:
    ours, its = pty.openpty()
    with subprocess.Popen(
        [AUDIT, "demo", "--tasks", "1", "--url", "http://127.0.0.1:1"],
        stdout=subprocess.DEVNULL,
        stderr=its,
        env={**ENVIRONMENT, "TERM": "xterm", "COLUMNS": "200"},
    ) as process:
        os.close(its)
        shown = b""
        while shown.count(b"trying again") < 2:
            shown += os.read(ours, 4096)
        process.send_signal(signal.SIGINT)
        process.wait(30)
        os.close(ours)

    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    warnings = [line for line in re.split(r"[\r\n]+", text) if "trying again" in line]
    assert all(re.match(r"\d{4}-\d\d-\d\dT[\d:.]*Z WARNING http", line) for line in warnings), text


def test_every_exit_code_is_in_the_help() -> None:
    code, out, _ = ended(command("--help"))
    listed = out.partition("Exit codes:")[2]

    assert code == 0
    assert {str(int(each)) for each in ExitCode} <= set(re.findall(r"\d+", listed))


def test_errors_of_options_have_the_names_of_the_options(url: str) -> None:
    cases = {
        "failures --last 7x": "--last: must be a span",
        "query --since yesterday": "--since: must be an RFC 3339 time, a date",
        "query --since 2026-99-99T00:00:00Z": "--since: month must be",
        "stats --by fortnight": "--by: must be one of auto",
        "stats --last 7d --by minute": "--by: would be",
        "query -o xml": "'xml' is not one of",
    }
    for arguments, message in cases.items():
        code, printed, error = audit(*arguments.split(), AUDIT_URL=url)
        assert (code, printed) == (2, ""), arguments
        assert message in error
        assert "Value error" not in error


def test_a_failed_connection_says_why() -> None:
    code, _, error = audit("whoami", AUDIT_URL="http://127.0.0.1:1", NO_PROXY="*")
    assert (code, error) == (69, "audit: http://127.0.0.1:1 does not answer: Connection refused\n")


def test_a_missing_key_is_answered_with_how_to_give_one(dsn: str, url: str) -> None:
    assert audit("keys", "create", "--name", "reader", "--scope", "read", AUDIT_DSN=dsn)[0] == 0
    wait_until(lambda: audit("whoami", AUDIT_URL=url)[0] == 77)

    assert "set AUDIT_KEY, or store a key with `audit login`" in audit("whoami", AUDIT_URL=url)[2]
    # A wrong key is reported as the service reports it.
    assert "audit login" not in audit("whoami", "--key", "wrong", AUDIT_URL=url)[2]


def test_help_names_what_an_option_takes() -> None:
    code, shown, _ = audit("query", "--help")

    assert code == 0
    assert "<list[str]>" not in shown
    assert "--since TIME" in " ".join(shown.split())
