"""The blocks of the pages for those who write clients work: feed, client and recorder."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from audit.client import Client
from tests.conftest import execute
from tests.needs import needs
from tests.processes import serving

DOCS = Path(__file__).parents[2] / "docs"


def blocks(page: str, language: str) -> list[str]:
    text = (DOCS / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def url(shared_dsn: str) -> Iterator[str]:
    """The URL of a service, whose database the tests of the module share."""
    with serving("--dsn", shared_dsn, log=subprocess.DEVNULL) as (_, url, _lines):
        yield url


def run(program: str, folder: Path) -> list[str]:
    """Run a Python program in a folder; return the lines that it prints."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        text=True, capture_output=True, check=False, timeout=60, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_commands_of_the_feed(url: str) -> None:
    curl = needs("curl")
    with Client(url) as client:
        client.record(request_text="x", services_touched=["payments"], status="failed")
        next(iter(client.changes(0, status="failed")))  # it has its position in the log now
    polls, streams, _ = blocks("feed.md", "sh")

    def printed(command: str) -> str:
        here = command.replace("http://127.0.0.1:8080", url)
        here = here.replace("curl", f"{curl} -sS --noproxy '*'", 1)
        return subprocess.run(
            here, shell=True, text=True, stdout=subprocess.PIPE, check=False
        ).stdout

    shown: Any = json.loads(blocks("feed.md", "json")[0])
    for command in polls.splitlines():
        answer = json.loads(printed(command))
        assert answer.keys() == shown.keys()
        assert answer["changes"][0].keys() == shown["changes"][0].keys()
    assert re.search("^event: change\nid: [0-9]+\ndata: {", printed(streams), re.MULTILINE)


def test_programs_of_the_client(url: str, tmp_path: Path) -> None:
    records, follows, exports = blocks("client.md", "python")
    program = records.replace("http://127.0.0.1:8080", url)

    assert run(program, tmp_path)[0].endswith(" completed Deploy payments 4.2")
    start = (
        f"from audit.client import Client\naudit = Client({url!r})\nsaved = 0\n"
        "audit.record(request_text='Fail', status='failed')\n"
        "def handle(change): print(change.task.request_text)\n"
        "def save(position): print(position > 0); raise SystemExit\n"
    )
    assert run(start + follows, tmp_path)[-1] == "True"
    exported = f"from audit.client import Client\naudit = Client({url!r})\n{exports}"
    assert re.fullmatch("[1-9][0-9]* [0-9a-f]{64}", run(exported, tmp_path)[0])


def test_program_of_the_recorder(url: str, shared_dsn: str, tmp_path: Path) -> None:
    (records,) = blocks("recorder.md", "python")
    program = records.replace("https://audit.example.com", url)
    program = program.replace("/var/lib/deployer", str(tmp_path)).replace("…", "key")
    start = "import asyncio\ndef deploy(): pass\n"
    run(f"{start}{program}\nasyncio.run(rotate())\nassert recorder.flush(60)", tmp_path)

    rows = execute(
        shared_dsn,
        "SELECT request_text, services_touched, status::text FROM tasks"
        " WHERE created_by = 'deployer' ORDER BY request_text",
    )
    assert rows == [
        ("Deploy payments 4.2", ["payments", "payments-db"], "completed"),
        ("Rotate the database secret of payments", ["payments"], "completed"),
    ]
