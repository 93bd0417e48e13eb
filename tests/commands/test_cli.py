"""The command `audit`, as a process: what it prints, how it ends, what it records."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from audit.history import demo
from audit.postgres.schema import migrations_on_disk
from audit.settings import Settings
from audit.web.openapi import document
from tests.commandline import (
    ENVIRONMENT,
    HIDDEN,
    UNREACHABLE,
    audit,
    count,
    fails_with,
    lines,
    start,
)
from tests.conftest import task
from tests.processes import serving
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 2,500 tasks: two batches and a half."""
    path = tmp_path_factory.mktemp("history") / "history.ndjson"
    path.write_text(lines(*demo.generate(2500, days=30, until=datetime.now(UTC))))
    return path


# --- help -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "settings"),
    [
        ("serve", list(Settings.model_fields)),
        ("migrate", ["dsn", "data_dir"]),
        ("record", ["dsn", "data_dir", "partition"]),
        ("demo", ["dsn", "data_dir", "partition"]),
    ],
)
def test_help_shows_each_setting_with_its_variable_and_default(
    command: str, settings: list[str]
) -> None:
    code, out, err = audit(command, "--help")
    shown = {
        option[2:].split()[0]: re.findall(
            # A long default is folded wherever it has a hyphen.
            r"\[(AUDIT_\w+);default:(.*)\]",
            "".join(option.split()),
        )
        for option in re.split(r"^  (?=-)", out, flags=re.MULTILINE)
    }

    assert (0, "") == (code, err)
    assert {
        name.replace("_", "-"): [(f"AUDIT_{name.upper()}", default(name))] for name in settings
    } == {
        option: value for option, value in shown.items() if value and option not in {"url", "key"}
    }
    assert (command in {"record", "demo"}) == ({"url", "key"} <= shown.keys())


def default(setting: str) -> str:
    field = Settings.model_fields[setting]
    if field.default_factory is not None:
        return "automatic"
    words = {"None": "none", "False": "off", "": "empty"}
    return words.get(str(field.default), "".join(str(field.default).split()))


def test_help_names_every_command_and_exit_code() -> None:
    code, out, _ = audit("--help")

    assert code == 0
    assert {
        "failures",
        "query",
        "service",
        "show",
        "watch",
        "tail",
        "serve",
        "migrate",
        "record",
        "openapi",
    } <= set(re.findall(r"^  ([a-z]+) ", out, re.MULTILINE))
    assert "..." not in out.partition("Commands:")[2], "a summary is longer than its line"
    codes = "0 1 2 65 66 69 74 77 78 124 130 141".split()
    assert codes == re.findall(r"\d+", out.partition("Exit codes:")[2])


def test_no_command_shows_the_help_as_an_error() -> None:
    code, out, err = audit()

    assert (2, "") == (code, out)
    assert "Commands:" in err


def test_version_is_that_of_the_package() -> None:
    with start("--version") as process:
        out, err = process.communicate()

    assert f"audit {importlib.metadata.version('task-audit')}\n" == out
    assert (0, "") == (process.returncode, err)


def test_openapi_prints_the_document() -> None:
    code, out, err = audit("openapi")

    assert (0, "") == (code, err)
    assert document() == json.loads(out)


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ("serve --port abc", "--port"),
        ("serve --port 65536", "--port or AUDIT_PORT: "),
        ("serve --workers 0", "--workers or AUDIT_WORKERS: "),
        ("serve --partition year", "'month', 'week', 'day'"),
        (f"migrate --dsn postgresql://a:{HIDDEN}/@b/c", "--dsn or AUDIT_DSN: port: must be"),
        ("serve --colour red", "--colour"),
        ("sing", "'sing'"),
        ("record", "FILE"),
        ("record no-such-file.ndjson", "no-such-file.ndjson: No such file"),
        ("record --url localhost:8080 -", "--url"),
        ("demo --until yesterday", "--until: must be an RFC 3339 time"),
    ],
)
def test_wrong_usage_is_reported_in_one_line(arguments: str, part: str) -> None:
    assert fails_with(audit(*arguments.split()), 2, part)


@pytest.mark.parametrize(
    ("command", "variable", "value", "part"),
    [
        ("serve", "AUDIT_PORT", "http", "AUDIT_PORT: "),
        ("serve", "AUDIT_DEMO", "perhaps", "AUDIT_DEMO: "),
        ("migrate", "AUDIT_DSN", f"mysql://a:{HIDDEN}@b/c", "AUDIT_DSN: must look like"),
        ("demo", "AUDIT_URL", "localhost", "--url"),
    ],
)
def test_a_wrong_variable_is_reported_in_one_line(
    command: str, variable: str, value: str, part: str
) -> None:
    assert fails_with(audit(command, **{variable: value}), 2, part)


@pytest.mark.parametrize("arguments", ["serve --port 0", "migrate", "record -"])
def test_an_unreachable_database_is_reported_in_one_line(arguments: str) -> None:
    result = audit(*arguments.split(), AUDIT_DSN=UNREACHABLE)

    assert fails_with(result, 69, "--dsn or AUDIT_DSN", "onnection refused")


def test_a_taken_port_is_reported_in_one_line(dsn: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])

        assert fails_with(
            audit("serve", "--port", port, "--dsn", dsn), 69, port, "--port", "in use"
        )


@pytest.mark.parametrize("arguments", ["serve --port 0", "record -"])
def test_a_schema_that_is_not_current_is_reported_in_one_line(
    empty_dsn: str, arguments: str
) -> None:
    result = audit(*arguments.split(), AUDIT_DSN=empty_dsn)

    assert fails_with(result, 78, "0001_tasks", "audit migrate")


def test_a_reader_that_closes_the_pipe_early_is_no_error() -> None:
    with start("demo", "--print", "--tasks", "5000") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()

        assert "" == process.stderr.read()


def test_an_empty_variable_counts_as_none(dsn: str) -> None:
    code, _, err = audit("migrate", "--status", AUDIT_DSN=dsn, AUDIT_PORT="", AUDIT_PARTITION="")

    assert (0, "") == (code, err)


def test_migrate_prints_what_it_did(empty_dsn: str) -> None:
    first, *others = migrations_on_disk()
    command = ("migrate", "--dsn", empty_dsn)

    assert (0, f"applied {first}\n", "") == audit(*command, "--to", first)
    assert (0, "".join(f"applied {name}\n" for name in others), "") == audit(*command)
    assert (0, "nothing to do\n", "") == audit(*command)
    assert (0, f"rolled back {others[-1]}\n", "") == audit(*command, "--rollback")
    assert ["migration", "applied", first, "yes"] == audit(*command, "--status")[1].split()[:4]
    assert fails_with(audit(*command, "--to", "0099_x"), 2, "--to: no migration is named 0099_x")


# --- demo -----------------------------------------------------------------------------------------


def test_the_same_seed_prints_the_same_bytes() -> None:
    options = ("--print", "--tasks", "200", "--until", "2026-11-23T08:00:00Z")
    first, again, other = (audit("demo", *options, "--seed", seed) for seed in "778")

    assert first == again
    assert first != other
    assert (0, 200, "") == (first[0], len(first[1].splitlines()), first[2])


def test_demo_records_what_it_prints(dsn: str) -> None:
    options = ("--tasks", "1100", "--days", "20", "--until", "2026-11-23T08:00:00Z")
    printed = audit("demo", *options, "--print")[1]

    assert (0, "recorded 1,100, duplicates 0\n", "") == audit("demo", *options, "--dsn", dsn)
    assert (0, "recorded 0, duplicates 1,100\n", "") == audit(
        "record", "-", "--dsn", dsn, given=printed
    )


# --- record ---------------------------------------------------------------------------------------


def test_a_second_run_records_only_duplicates(dsn: str, history: Path) -> None:
    command = ("record", str(history), "--dsn", dsn)

    assert (0, "recorded 2,500, duplicates 0\n", "") == audit(*command)
    assert (0, "recorded 0, duplicates 2,500\n", "") == audit(*command)
    assert 2500 == count(dsn)


def test_any_form_of_file_is_recorded(dsn: str, tmp_path: Path) -> None:
    files = {
        "ndjson": lines(task(), task()),
        "no-newline-at-its-end": lines(task(), task()).strip(),
        "blank-lines": f"\n\n{lines(task())}\n{lines(task())}\n",
        "array": json.dumps([task(), task()]),
        "pretty-array": f"\n{json.dumps([task(), task()], indent=4)}\n",
        "object": json.dumps(task()),
        "pretty-object": json.dumps(task(), indent=4),
        "byte-order-mark": "\ufeff" + lines(task()),
        "byte-order-mark-of-an-array": "\ufeff" + json.dumps([task()]),
        "empty": "",
        "empty-array": "[]\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    names = [str(tmp_path / name) for name in files]

    assert (0, "recorded 16, duplicates 0\n", "") == audit(
        "record", *names, "-", "--dsn", dsn, given=lines(task(), task())
    )
    assert 16 == count(dsn)


def test_tasks_are_recorded_through_a_service(dsn: str, history: Path) -> None:
    with serving("--dsn", dsn) as (_, url, _):
        command = ("record", str(history), "--url", url)

        assert (0, "recorded 2,500, duplicates 0\n", "") == audit(*command)
        assert (0, "recorded 0, duplicates 2,500\n", "") == audit(*command)
        assert 2500 == count(dsn)
        nanoseconds = lines(task(created_at="2026-10-02T10:00:00.123456789+0000"))
        for result in ("recorded 1, duplicates 0\n", "recorded 0, duplicates 1\n"):
            assert (0, result, "") == audit("record", "-", "--url", url, given=nanoseconds)


def test_a_service_that_is_just_starting_is_waited_for(dsn: str, history: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    with start("record", str(history), "--url", f"http://127.0.0.1:{port}") as recording:
        assert recording.stderr is not None
        waits = recording.stderr.readline()
        with serving("--dsn", dsn, "--port", port):
            out, _ = recording.communicate()

    assert "trying again in" in waits
    assert (0, "recorded 2,500, duplicates 0\n") == (recording.returncode, out)


def test_a_bad_line_is_named_and_the_batches_before_it_stay(
    dsn: str, history: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.ndjson"
    good = history.read_text().splitlines(keepends=True)
    bad.write_text("".join([*good[:1200], lines(task(status="done")), *good[1200:]]))
    result = audit("record", str(bad), "--dsn", dsn)

    assert fails_with(result, 65, f"{bad}: line 1201: status: must be one of pending")
    assert "recorded 1,000, duplicates 0\n" == result[1]
    assert 1000 == count(dsn)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("no JSON\n" + lines(task()), "line 1"),
        (lines(task()) + "no JSON\n", "line 2: not JSON"),
        (lines(task(), {"request_text": "x"}), "line 2: task_id is missing"),
        (lines(task(), task(task_id=None)), "line 2"),
        ("[\n" + lines(task()) + ",\n" + lines({**task(), "status": 7}) + "]", "line 4: status"),
        ("[" * 100_000, "line 1: is nested over 64 levels deep (max_nesting)"),
        ("[" + lines(task()) + ",]", "line 2: not JSON"),
    ],
    ids=["first line", "later line", "no id", "null id", "in an array", "too deep", "last comma"],
)
def test_a_value_that_is_not_a_task_with_an_id_is_refused(dsn: str, text: str, part: str) -> None:
    assert fails_with(audit("record", "-", "--dsn", dsn, given=text), 65, "-: ", part)


def test_a_conflict_names_the_id_and_the_batches_before_it_stay(dsn: str, history: Path) -> None:
    kept = task()
    changed = {**kept, "request_text": "something else"}
    audit("record", "-", "--dsn", dsn, given=lines(kept))
    result = audit("record", str(history), "-", "--dsn", dsn, given=lines(changed))

    assert fails_with(result, 65, f"-: recorded with other content: {kept['task_id']}")
    assert "recorded 2,500, duplicates 0\n" == result[1]
    assert 2501 == count(dsn)


def test_a_terminal_shows_a_bar(dsn: str, history: Path) -> None:
    ours, its = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "audit", "record", str(history), "--dsn", dsn],
        stdout=subprocess.PIPE,
        stderr=its,
        env={**ENVIRONMENT, "TERM": "xterm"},
    ) as process:
        os.close(its)
        shown = b""
        with contextlib.suppress(OSError):  # how a terminal ends
            while part := os.read(ours, 4096):
                shown += part
        os.close(ours)
        out, _ = process.communicate()

    assert "2,500 tasks" in shown.decode()
    assert b"recorded 2,500, duplicates 0\n" == out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_is_completed_by_a_second_run(
    dsn: str, history: Path, number: signal.Signals
) -> None:
    tasks = history.read_text()
    with start("record", "-", "--dsn", dsn) as process:
        assert process.stdin is not None
        process.stdin.write(tasks[: tasks.index("\n", len(tasks) // 2)])
        process.stdin.flush()
        wait_until(lambda: count(dsn) >= 1000)
        process.send_signal(number)
        process.wait(60)
        out, err = process.communicate()

    assert (130, "recorded 1,000, duplicates 0\n") == (process.returncode, out)
    assert re.fullmatch("audit: database: .*\n", err)
    assert (0, "recorded 1,500, duplicates 1,000\n", "") == audit(
        "record", str(history), "--dsn", dsn
    )
