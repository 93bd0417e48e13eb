"""`audit spool`: what people see of a spool and decide about what the service refused."""

from __future__ import annotations

import json
from pathlib import Path
from uuid import uuid4

import pytest

from audit.recorder.process import Process
from audit.recorder.spool import Holder, Spool
from tests.commandline import audit, count

NO_PROXY = {"NO_PROXY": "*"}


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    """A spool with one record that waits, and one of each of two tasks that was refused."""
    spool = Spool(tmp_path / "spool.db")
    holder = Holder(Process.current(), "test")
    assert spool.take_lease(holder)
    for name in ("first", "second", "third"):
        spool.add(name, json.dumps({"request_text": name}))
    for record in spool.mark_sent(spool.next_new(2, 1000), holder, 10):
        spool.refuse(record, {"status": 422, "detail": f"{record.task_id} is wrong"}, holder)
    return spool


def test_list_shows_what_waits_and_what_was_refused(spool: Spool) -> None:
    code, shown, _ = audit("spool", "list", str(spool.path))

    first, header, *rows = shown.splitlines()
    assert code == 0
    assert first.startswith("1 waiting (the oldest for ")
    assert first.endswith(" s), 0 tasks running, 2 refused")
    assert header.split() == ["task", "record", "refused", "problem"]
    assert [row.split()[0] for row in rows] == ["first", "second"]
    assert rows[0].endswith("422 first is wrong")


def test_list_as_json_has_the_whole_records(spool: Spool) -> None:
    _, shown, _ = audit("spool", "list", "--json", str(spool.path))

    document = json.loads(shown)
    assert document["waiting"] == 1
    assert [each["body"] for each in document["refused"]] == [
        {"request_text": "first"},
        {"request_text": "second"},
    ]
    assert document["refused"][0]["problem"]["status"] == 422


def test_retry_puts_records_back(spool: Spool) -> None:
    assert audit("spool", "retry", str(spool.path), "first", "unknown") == (
        0,
        "1 records are sent again\n",
        "audit: nothing of these tasks was refused: unknown\n",
    )
    assert audit("spool", "retry", str(spool.path))[1] == "1 records are sent again\n"
    assert (spool.size().waiting, spool.size().refused) == (3, 0)


def test_flush_sends_what_waits(tmp_path: Path, url: str, dsn: str) -> None:
    spool = Spool(tmp_path / "spool.db")
    for number in range(3):
        task_id = str(uuid4())
        spool.add(task_id, json.dumps({"task_id": task_id, "request_text": f"task {number}"}))
    flush = ("spool", "flush", str(spool.path), "--url")

    nowhere = audit(*flush, "http://127.0.0.1:1", "--timeout", "1s", **NO_PROXY)
    assert nowhere[0] == 69
    assert nowhere[1].startswith("3 waiting ")
    assert "does not answer: Connection refused" in nowhere[2]
    flushed = audit(*flush, url, **NO_PROXY)
    assert flushed == (0, "0 waiting (the oldest for 0 s), 0 tasks running, 0 refused\n", "")
    assert count(dsn) == 3

    spool.add("wrong", json.dumps({"task_id": str(uuid4()), "request_text": ""}))
    code, said, _ = audit(*flush, url, **NO_PROXY)
    assert (code, said.endswith(", 1 refused\n")) == (65, True)


def test_drop_deletes_what_it_is_told_to(spool: Spool) -> None:
    assert audit("spool", "drop", str(spool.path))[0] == 2
    assert spool.size().refused == 2
    assert audit("spool", "drop", str(spool.path), "first")[1] == "1 records are dropped\n"
    assert audit("spool", "drop", str(spool.path), "--all")[1] == "1 records are dropped\n"
    assert (spool.size().waiting, spool.size().refused) == (1, 0)


def test_a_file_that_is_no_spool_is_named(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("text " * 1000)

    code, _, said = audit("spool", "list", str(tmp_path / "text"))
    assert (code, "file is not a database" in said) == (74, True)
    code, _, said = audit("spool", "list", str(tmp_path / "missing"))
    assert (code, "no such file" in said) == (2, True)
    assert not (tmp_path / "missing").exists()
