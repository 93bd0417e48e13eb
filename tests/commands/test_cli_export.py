"""`audit export`: files with a manifest, exports that are continued, and files that are checked."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.api import FULL_TASK
from tests.commandline import ENVIRONMENT, Ended, audit, command, count, ended, fails_with, lines
from tests.commands.conftest import DIGITS
from tests.conftest import _database as database
from tests.conftest import ago, execute, task
from tests.processes import API, AUDIT, get, serving
from tests.waiting import wait_until

NO_PROXY = {"NO_PROXY": "*"}


@pytest.fixture
def ids(dsn: str) -> list[str]:
    """The ids of ten tasks, the newest first."""
    tasks = [
        task(
            created_at=ago(days=n + 1),
            status="failed" if n % 2 else "completed",
            request_text=f'line {n}\n"quoted", =1+1',
        )
        for n in range(10)
    ]
    assert audit("record", "-", given=lines(*tasks), AUDIT_DSN=dsn)[0] == 0
    return [str(one["task_id"]) for one in tasks]


def export(url: str, *options: str | Path) -> Ended:
    return audit("export", "--url", url, *map(str, options), **NO_PROXY)


def read(file: Path, form: str = "ndjson") -> list[str]:
    """Return the ids of the tasks in a file."""
    text = (gzip.decompress if file.suffix == ".gz" else bytes)(file.read_bytes()).decode()
    if form == "csv":
        return [row["task_id"] for row in csv.DictReader(text.splitlines(keepends=True))]
    return [json.loads(line)["task_id"] for line in text.splitlines()]


def manifest_of(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(f"{file}.manifest.json").read_bytes())
    return found


def cut(file: Path, size: int) -> None:
    """Leave of a complete file what an export that was cut off there would leave."""
    manifest = manifest_of(file)
    part = Path(f"{file}.part")
    file.rename(part)
    with part.open("r+b") as stored:
        stored.truncate(size)
    (last,) = manifest["parts"]
    state = {name: last[name] for name in ("export_id", "snapshot", "after")}
    Path(f"{file}.part.json").write_text(
        json.dumps({"params": manifest["params"], "parts": [state]})
    )
    Path(f"{file}.manifest.json").unlink()


@pytest.mark.parametrize("name", ["tasks.ndjson", "tasks.ndjson.gz", "tasks.csv", "tasks.csv.gz"])
def test_a_file_and_its_manifest_are_written(
    url: str, ids: list[str], tmp_path: Path, name: str
) -> None:
    file = tmp_path / name
    form = name.split(".")[1]
    code, out, err = export(url, "-o", file, "--format", form, "--status", "failed", "--last", "7d")

    assert (code, out) == (0, ""), err
    assert read(file, form) == [each for n, each in enumerate(ids) if n % 2 and n < 7]
    manifest = manifest_of(file)
    body = (gzip.decompress if file.suffix == ".gz" else bytes)(file.read_bytes())
    assert manifest["sha256"] == hashlib.sha256(body).hexdigest()
    assert manifest["sha256"] in err
    assert (manifest["tasks"], manifest["bytes"], manifest["format"]) == (3, len(body), form)
    assert manifest["complete"] is manifest["one_snapshot"] is manifest["recorded"] is True
    assert manifest["params"]["status"] == ["failed"]
    assert "last" not in manifest["params"]
    (part,) = manifest["parts"]
    recorded = get(f"{url}{API}/exports/{part['export_id']}")[1]
    assert {**recorded, "recorded": True} == part
    assert sorted(path.name for path in tmp_path.iterdir()) == [name, f"{name}.manifest.json"]
    assert export(url, "--verify", file)[0] == 0


def test_an_export_of_no_tasks(url: str, tmp_path: Path) -> None:
    file = tmp_path / "none.ndjson"

    assert export(url, "-o", file, "--resume")[0] == 0
    assert (file.read_bytes(), manifest_of(file)["tasks"]) == (b"", 0)
    assert export(url, "--verify", file)[0] == 0
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("form", ["ndjson", "csv"])
def test_an_export_that_was_cut_off_is_continued(
    url: str, dsn: str, ids: list[str], tmp_path: Path, form: str
) -> None:
    file = tmp_path / f"tasks.{form}"
    options = ("-o", file, "--format", form, "--last", "30d")
    assert export(url, *options)[0] == 0
    whole = file.read_bytes()
    cut(file, len(whole) * 2 // 3)

    assert fails_with(export(url, *options), 65, "exists: resume it")
    assert fails_with(
        export(url, "-o", file, "--format", form, "--status", "failed", "--resume"),
        65,
        "other options",
    )
    code, _, err = export(url, *options, "--resume")

    assert code == 0, err
    assert "at 2 moments" in err
    assert file.read_bytes() == whole
    manifest = manifest_of(file)
    assert manifest["one_snapshot"] is False
    first, second = manifest["parts"]
    assert first["tasks"] + second["tasks"] == manifest["tasks"] == 10
    assert [False, True] == [first["complete"], second["complete"]]
    assert second["after"] == ids[first["tasks"] - 1]
    assert manifest["sha256"] == hashlib.sha256(whole).hexdigest()
    code, _, err = export(url, "--verify", file)
    assert code == 0
    assert "at 2 moments" in err


@pytest.mark.parametrize("at", ["nothing", "header", "all", "zeros"])
def test_it_is_continued_wherever_it_was_cut(
    url: str, ids: list[str], tmp_path: Path, at: str
) -> None:
    """At the beginning, after the header, and at the end. A power cut may leave zeros."""
    file = tmp_path / "tasks.csv"
    options = ("-o", file, "--format", "csv")
    assert export(url, *options)[0] == 0
    whole = file.read_bytes()
    sizes = {"nothing": 0, "header": whole.index(b"\n") + 1, "all": len(whole), "zeros": 700}
    cut(file, sizes[at])
    if at == "zeros":
        with Path(f"{file}.part").open("ab") as part:
            part.write(bytes(500) + b'"\n' + bytes(500))

    code, _, err = export(url, *options, "--resume")

    assert code == 0, err
    assert file.read_bytes() == whole
    assert manifest_of(file)["one_snapshot"] is (at in {"nothing", "header"})


@pytest.fixture
def other_dsn(postgres: str, template: str) -> Iterator[str]:
    """A second database, which is empty."""
    yield from database(postgres, template)


def test_an_export_can_be_recorded_elsewhere(
    url: str, dsn: str, other_dsn: str, ids: list[str], tmp_path: Path
) -> None:
    """The export of the other database is the same, except that it was recorded later."""
    numbers = f'{{"n": {DIGITS}, "small": 1e-9, "recorded_at": "nested"}}'
    more = [FULL_TASK, task(status="executing", completed_at=None, outcome=None, suggestions=None)]
    assert audit("record", "-", given=lines(*more), AUDIT_DSN=dsn)[0] == 0
    execute(dsn, f"UPDATE tasks SET outcome = '{numbers}' WHERE status = 'executing'")
    file, again = tmp_path / "tasks.ndjson", tmp_path / "again.ndjson"
    assert export(url, "-o", file)[0] == 0

    code, out, err = audit("record", str(file), AUDIT_DSN=other_dsn)
    assert (code, out) == (0, "recorded 12, duplicates 0\n"), err
    assert len([line for line in err.splitlines() if "recorded_at is left out" in line]) == 1
    with serving("--workers", "1", AUDIT_DSN=other_dsn) as (_, other_url, _):
        assert export(other_url, "-o", again)[0] == 0

    def content(path: Path) -> list[str]:
        return [
            re.sub(r'"recorded_at" : "2[^"]*"', "", one) for one in path.read_text().splitlines()
        ]

    assert content(file) == content(again)
    assert DIGITS in file.read_text()


def test_a_file_that_differs_is_found(url: str, ids: list[str], tmp_path: Path) -> None:
    file, packed = tmp_path / "tasks.ndjson", tmp_path / "tasks.ndjson.gz"
    assert export(url, "-o", file)[0] == export(url, "-o", packed)[0] == 0
    whole = file.read_bytes()
    damaged = bytearray(packed.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    packed.write_bytes(damaged)

    assert fails_with(export(url, "--verify", packed), 1, str(packed))
    packed.write_bytes(damaged[:40])
    assert fails_with(export(url, "--verify", packed), 1, "damaged")
    for body, why in (
        (whole[:-1], "a part of a line"),
        (whole + whole.splitlines(keepends=True)[0], "tasks is 11, not 10"),
        (whole.replace(b"line 3", b"line 4"), "sha256"),
        (b"", "tasks is 0"),
    ):
        file.write_bytes(body)
        assert fails_with(export(url, "--verify", file), 1, why)
    Path(f"{file}.manifest.json").write_text("[]")
    assert fails_with(export(url, "--verify", file), 65, "not a manifest")
    assert fails_with(export(url, "--verify", tmp_path / "x"), 65, "there is no")
    file.unlink()
    packed.unlink()
    assert fails_with(export(url, "--verify", packed), 74, "No such file")


def test_two_exports_to_one_file(url: str, dsn: str, ids: list[str], tmp_path: Path) -> None:
    """The second one is refused while the first one runs, which an interrupt leaves as a part."""
    file = tmp_path / "tasks.ndjson"
    more = [task(error_message="x" * 8000) for _ in range(3000)]
    assert audit("record", "-", given=lines(*more), AUDIT_DSN=dsn)[0] == 0
    part = Path(f"{file}.part")
    running = command("export", "--url", url, "-o", file, **NO_PROXY)
    wait_until(lambda: part.exists() and part.stat().st_size)
    running.send_signal(signal.SIGSTOP)

    assert fails_with(export(url, "-o", file, "--resume"), 65, "another process")

    running.send_signal(signal.SIGINT)
    running.send_signal(signal.SIGCONT)
    code, _, err = ended(running)
    assert code == 130, err
    assert "--resume" in err
    assert export(url, "-o", file, "--resume")[0] == 0
    assert sorted(read(file)) == sorted([*ids, *(one["task_id"] for one in more)])


def test_a_pipe_is_not_replaced_and_a_link_is_followed(url: str, dsn: str, tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "pipe")
    (link := tmp_path / "link").symlink_to("tasks")

    assert fails_with(export(url, "-o", pipe), 74, f"{pipe}: not a regular file")
    assert fails_with(export(url, "-o", tmp_path), 74, "not a regular file")
    assert export(url, "-o", link)[0] == 0
    assert export(url, "--verify", link)[0] == 0
    assert pipe.is_fifo()
    assert link.is_symlink()
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"pipe", "link", "tasks", "tasks.manifest.json"}


def test_a_file_that_cannot_grow_is_continued(url: str, ids: list[str], tmp_path: Path) -> None:
    file = tmp_path / "tasks"
    limited = ("bash", "-c", 'ulimit -f 1; exec "$@"', "-", AUDIT, "export", "--url", url)
    done = subprocess.run(
        [*limited, "-o", file],
        env=ENVIRONMENT | NO_PROXY,
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout) == (74, "")
    assert f"{file}.part has what came so far; the command with --resume" in done.stderr
    assert "File too large" in done.stderr
    assert export(url, "-o", file, "--resume")[0] == 0
    assert read(file) == ids


def test_what_cannot_be_exported(url: str, dsn: str, tmp_path: Path) -> None:
    file = tmp_path / "tasks"

    assert fails_with(export(url), 2, "-o")
    assert fails_with(export(url, "--verify", file, "-o", file), 2, "--verify")
    assert fails_with(export(url, "-o", file, "--columns", "task_id"), 2, "columns")
    assert fails_with(export(url, "-o", file, "--format", "xml"), 2, "xml")
    assert fails_with(export(url, "-o", file, "--last", "soon"), 2, "last")
    assert fails_with(export(url, "-o", "-"), 2, "name a file")
    assert fails_with(
        export(url, "-o", tmp_path / "no" / "folder"), 74, "folder.part: No such file"
    )
    assert fails_with(audit("export", "--dsn", dsn, "-o", str(file)), 2, "--dsn")
    unreachable = audit("export", "--url", "http://127.0.0.1:1", "-o", str(file), **NO_PROXY)
    assert unreachable[0] == 69
    assert list(tmp_path.iterdir()) == []
    assert count(dsn) == 0
