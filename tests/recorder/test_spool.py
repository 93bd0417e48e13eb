"""The spool as a file: merging, leases, orphans, limits, and copies of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from audit.recorder import Recorder, SpoolError, SpoolFull, sender, statements
from audit.recorder.errors import LeaseLost
from audit.recorder.process import Process
from audit.recorder.spool import Holder, Spool
from audit.resources import folder
from tests.processes import free_port
from tests.recorder.conftest import Run
from tests.waiting import wait_until

ME = Process.current()
FILES = {file.name: file.read_text() for file in folder("sql").joinpath("spool").iterdir()}
TEXTS = sorted(name for name in FILES if name.endswith(".sql"))


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool.db")


def bodies(spool: Spool) -> list[dict[str, Any]]:
    records = [*spool.next_new(100, 10**6), *spool.next_changes(100)]
    return [json.loads(record.body) for record in records]


@pytest.mark.parametrize("name", TEXTS)
def test_statement_begins_with_its_name_and_is_valid(
    spool: Spool, name: str, tmp_path: Path
) -> None:
    spool.open()
    text = FILES[name]

    assert text.startswith(f"-- {name.removesuffix('.sql')}: ")
    assert text in vars(statements).values()
    if name != "create_tables.sql":
        with sqlite3.connect(tmp_path / "spool.db") as connection:
            values = dict.fromkeys(re.findall(r":(\w+)", text))
            connection.execute(f"EXPLAIN {text}", values)
        connection.close()


def test_a_change_is_merged_into_a_task_that_was_never_sent(spool: Spool) -> None:
    spool.add("a", '{"status": "executing", "request_text": "x"}')
    spool.change("a", '{"status": "completed", "outcome": {"n": 1}}')

    assert bodies(spool) == [{"status": "completed", "request_text": "x", "outcome": {"n": 1}}]


def test_a_change_is_not_merged_into_a_task_that_was_started_twice(spool: Spool) -> None:
    spool.add("a", '{"status": "executing"}')
    spool.add("a", '{"status": "executing"}')
    spool.change("a", '{"status": "completed"}')

    statuses = [body["status"] for body in bodies(spool)]
    assert statuses == ["executing", "executing"]  # the change waits for both


def test_a_change_is_not_merged_once_the_task_may_have_been_sent(spool: Spool) -> None:
    holder = Holder(ME, "1")
    spool.add("a", '{"status": "executing"}')
    assert spool.take_lease(holder)
    spool.mark_sent(spool.next_new(1, 1), holder, 10)
    spool.change("a", '{"status": "completed"}')

    assert bodies(spool) == [{"status": "executing"}]  # the change waits for its task
    spool.remove(spool.next_new(1, 1), holder)
    assert bodies(spool) == [{"status": "completed"}]


def test_a_body_that_changed_after_it_was_read_is_sent_as_it_is_now(spool: Spool) -> None:
    holder = Holder(ME, "1")
    spool.add("a", '{"status": "executing"}')
    assert spool.take_lease(holder)
    read = spool.next_new(1, 1)
    spool.change("a", '{"status": "completed"}')

    (sent,) = spool.mark_sent(read, holder, 10)

    assert json.loads(sent.body) == {"status": "completed"}


def test_changes_keep_their_order_if_one_is_too_large_to_merge(spool: Spool) -> None:
    spool.add("a", '{"status": "executing"}')
    spool.change("a", json.dumps({"status": "executing", "outcome": {"text": "x" * 600_000}}))
    spool.change("a", '{"status": "completed"}')

    assert bodies(spool) == [{"status": "executing"}]
    assert spool.size().waiting == 3


def test_a_batch_has_a_limit_in_bytes_but_at_least_one_task(spool: Spool) -> None:
    for name in "abc":
        spool.add(name, '{"text": "%s"}' % (name * 100))

    assert [record.task_id for record in spool.next_new(10, 250)] == ["a", "b"]
    assert [record.task_id for record in spool.next_new(10, 1)] == ["a"]


def test_one_sender_has_the_lease(spool: Spool) -> None:
    first, second = Holder(ME, "1"), Holder(ME, "2")
    spool.add("a", "{}")

    assert spool.take_lease(first)
    assert spool.take_lease(first)
    assert not spool.take_lease(second)
    with pytest.raises(LeaseLost):
        spool.remove(spool.next_new(1, 1), second)
    with pytest.raises(LeaseLost):
        spool.mark_sent(spool.next_new(1, 1), second, 10)
    spool.release_lease(second)
    assert not spool.take_lease(second)
    spool.release_lease(first)
    assert spool.take_lease(second)


@pytest.mark.parametrize(
    ("process", "seconds", "is_free"),
    [
        (ME, 10.0, False),
        (ME, -1.0, True),
        (ME, 10_000.0, True),
        (replace(ME, pid=2**22 + 1), 10.0, True),
        (replace(ME, started="1"), 10.0, True),
        (replace(ME, boot_id="another"), 10.0, True),
        (replace(ME, host="another/1"), 10.0, False),
        (replace(ME, host=f"{ME.host}1", started="1"), 10.0, False),
    ],
    ids=[
        "alive",
        "over",
        "of another boot",
        "no such process",
        "the id is used again",
        "the host was restarted",
        "another host",
        "another container",
    ],
)
def test_who_may_take_over_a_lease(
    spool: Spool, process: Process, seconds: float, is_free: bool
) -> None:
    assert spool.take_lease(Holder(process, "1"), seconds)

    assert spool.take_lease(Holder(ME, "2")) == is_free


FAILED = '{"status": "failed"}'


def test_a_task_whose_process_is_gone_is_ended_once(spool: Spool) -> None:
    spool.add("a", '{"status": "executing"}', replace(ME, started="1"))
    spool.add("b", '{"status": "executing"}', ME)
    spool.add("c", '{"status": "pending"}')

    assert spool.end_orphans(FAILED, 0) == []  # the first look notes that the process is gone
    assert spool.end_orphans(FAILED, 0) == ["a"]
    assert spool.end_orphans(FAILED, 0) == []
    assert [body["status"] for body in bodies(spool)] == ["failed", "executing", "pending"]
    assert spool.size().running == 1


def test_whoever_watches_a_process_may_end_its_tasks_first(spool: Spool) -> None:
    for task_id in ("reported", "resumed", "silent"):
        spool.add(task_id, '{"status": "executing"}', replace(ME, started="1"))
    assert spool.end_orphans(FAILED, 500) == []
    assert spool.end_orphans(FAILED, 500) == []

    spool.change("reported", '{"status": "failed", "error_message": "killed"}', ends=True)
    spool.change("resumed", '{"status": "executing"}', ME)
    assert Spool(spool.path).end_orphans(FAILED, 0) == ["silent"]
    assert bodies(spool)[0] == {"status": "failed", "error_message": "killed"}


def test_a_process_that_was_found_gone_before_the_host_started_again(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool.add("a", '{"status": "executing"}', replace(ME, boot_id="another"))
    assert spool.end_orphans(FAILED, 500) == []
    monkeypatch.setattr(time, "monotonic", lambda: 1.0)

    assert spool.end_orphans(FAILED, 500) == ["a"]


def test_refused_records_are_tried_again_in_their_order(spool: Spool) -> None:
    holder = Holder(ME, "1")
    spool.add("a", '{"n": 1}')
    spool.add("b", '{"n": 2}')
    assert spool.take_lease(holder)
    first, second = spool.mark_sent(spool.next_new(2, 1000), holder, 10)
    spool.change("a", '{"n": 3}')
    spool.refuse(first, {"detail": "wrong"}, holder)
    (change,) = spool.next_changes(10)
    spool.refuse(change, {"detail": "unknown"}, holder)
    spool.refuse(second, {"detail": "wrong"}, holder)

    assert [record.task_id for record in spool.refused()] == ["a", "b", "a"]
    assert spool.retry(["a"]) == 2
    assert bodies(spool) == [{"n": 1}]  # the change waits for its task
    assert spool.drop(["b"]) == 1
    assert spool.refused() == []


def test_a_spool_at_its_limit_does_not_let_work_begin(tmp_path: Path) -> None:
    recorder = Recorder("http://127.0.0.1:1", spool=tmp_path / "spool.db", max_bytes=200_000)
    with pytest.raises(SpoolFull, match=r"spool\.db: database or disk is full"):  # noqa: PT012
        for number in range(1000):
            recorder.start(f"Deploy {number}", outcome={"text": "x" * 1000})

    stored = recorder.stats().waiting
    assert stored == number
    recorder.close(0)
    assert Spool(tmp_path / "spool.db").size().waiting == stored


def fill(recorder: Recorder, **members: Any) -> None:
    while True:
        recorder.start("Deploy", **members)


def test_a_task_that_began_before_the_spool_was_full_ends_without_an_exception(
    tmp_path: Path,
) -> None:
    reported: list[Exception] = []
    recorder = Recorder(
        "http://127.0.0.1:1",
        spool=tmp_path / "spool.db",
        max_bytes=200_000,
        on_error=reported.append,
    )
    with recorder.task("Deploy") as task:
        with pytest.raises(SpoolFull):
            fill(recorder, outcome={"text": "x" * 1000})
        with pytest.raises(SpoolFull):
            fill(recorder)
        task.outcome["text"] = "x" * 10_000

    assert recorder.stats().dropped == 1
    assert [type(error) for error in reported if isinstance(error, SpoolError)] == [SpoolFull]
    recorder.close(0)


def test_work_goes_on_at_the_limit_if_that_is_wanted(tmp_path: Path) -> None:
    reported: list[Exception] = []
    recorder = Recorder(
        "http://127.0.0.1:1",
        spool=tmp_path / "spool.db",
        max_bytes=200_000,
        on_full="drop-and-count",
        on_error=reported.append,
    )
    worked = 0
    for _ in range(300):
        with recorder.task("Deploy", outcome={"text": "x" * 1000}):
            worked += 1

    assert worked == 300
    stats = recorder.stats()
    assert stats.dropped > 0
    assert stats.waiting + stats.dropped >= 300
    assert any(isinstance(error, SpoolFull) for error in reported)
    recorder.close(0)


def test_a_spool_that_cannot_be_written(tmp_path: Path) -> None:
    missing = tmp_path / "missing" / "spool.db"
    with pytest.raises(SpoolError, match=r"missing/spool\.db: unable to open"):
        Recorder("http://127.0.0.1:1", spool=missing)

    recorder = Recorder("http://127.0.0.1:1", spool=missing, on_full="drop-and-count")
    with recorder.task("Deploy"):
        pass
    missing.parent.mkdir()
    with recorder.task("Deploy again"):
        pass

    assert recorder.stats().waiting == 1
    recorder.close(0)


def test_a_spool_that_is_read_only(tmp_path: Path, run: Run) -> None:
    """Root may write any file, so a process without this right records."""
    Spool(tmp_path / "spool.db").open()
    for path in (tmp_path, *tmp_path.iterdir()):
        path.chmod(0o555)
    folder = tmp_path
    while folder != folder.parent and folder.stat().st_mode & 0o005 != 0o005:
        folder.chmod(folder.stat().st_mode | 0o005)
        folder = folder.parent
    program = """
import os, sys
from audit.recorder import Recorder, SpoolError
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
try:
    Recorder("http://127.0.0.1:1", spool=sys.argv[1])
except SpoolError as error:
    print(error)
recorder = Recorder("http://127.0.0.1:1", spool=sys.argv[1], on_full="drop-and-count")
with recorder.task("Deploy"):
    print("works")
print(recorder._dropped)
"""
    printed, _ = run(program, tmp_path / "spool.db").communicate(timeout=60)
    tmp_path.chmod(0o755)

    message, *rest = printed.splitlines()
    assert "spool.db: " in message
    # Opening, the start, and the end that tries to record the whole.
    assert rest == ["works", "3"]


def test_a_file_that_is_no_spool_is_refused(tmp_path: Path) -> None:
    (tmp_path / "spool.db").write_text("something else " * 1000)

    with pytest.raises(SpoolError, match="not a database"):
        Recorder("http://127.0.0.1:1", spool=tmp_path / "spool.db")


RECORD_FOR_EVER = """
import itertools, sys
from audit.recorder import Recorder
recorder = Recorder(sys.argv[1], spool=sys.argv[2])
for number in itertools.count():
    with recorder.task(f"{sys.argv[3]}{number}") as task:
        pass
    print(task.task_id, flush=True)
"""


def test_a_copy_at_a_random_moment_has_all_that_was_acknowledged(tmp_path: Path, run: Run) -> None:
    """The writer is stopped wherever it is, as a power cut would stop it."""
    process = run(RECORD_FOR_EVER, f"http://127.0.0.1:{free_port()}", tmp_path / "spool.db", "")
    assert process.stdout
    acknowledged = set()
    for number in range(10):
        for _ in range(5):
            acknowledged.add(process.stdout.readline().strip())
        os.kill(process.pid, signal.SIGSTOP)
        copy = tmp_path / f"copy {number}"
        copy.mkdir()
        for path in tmp_path.glob("spool.db*"):
            shutil.copy(path, copy)
        os.kill(process.pid, signal.SIGCONT)

        with sqlite3.connect(copy / "spool.db") as connection:
            stored = {task_id for (task_id,) in connection.execute("SELECT task_id FROM record")}
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        connection.close()
        assert acknowledged <= stored


def test_commits_are_synced_to_the_disk(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool.db")._database.reading() as connection:
        modes = [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in MODES]

    assert modes == list(MODES.values())


MODES = {"journal_mode": "wal", "synchronous": 2, "busy_timeout": 5000}


def test_a_host_whose_clock_is_set_back_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lease does not depend on the wall clock, and a task does not end before it began."""
    recorder = Recorder("http://127.0.0.1:1", spool=tmp_path / "spool.db")
    holder = Holder(ME, "1")
    spool = Spool(tmp_path / "spool.db")
    with recorder.task("Deploy"):
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() - 86_400)
    recorder.close(0)

    wait_until(lambda: spool.take_lease(holder))  # its sender may still be at work
    (body,) = bodies(spool)
    assert body["created_at"] <= body["completed_at"]


def test_a_task_of_a_process_that_was_killed_is_recorded_as_failed(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = """
import os, sys, signal
from audit.recorder import Recorder
recorder = Recorder("http://127.0.0.1:1", spool=sys.argv[1])
with recorder.task("Deploy"):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert run(program, tmp_path / "spool.db").wait(60) == -signal.SIGKILL

    left = Recorder("http://127.0.0.1:1", spool=tmp_path / "spool.db", orphans="leave")
    left.close(1)
    assert left.stats().running == 1
    first = Recorder("http://127.0.0.1:1", spool=tmp_path / "spool.db")
    first.close(1)
    assert first.stats().running == 1
    monkeypatch.setattr(sender, "_GONE_SECONDS", 0)
    second = Recorder("http://127.0.0.1:1", spool=tmp_path / "spool.db")
    second.close(1)

    assert second.stats().running == 0
    (body, *_) = [*bodies(Spool(tmp_path / "spool.db"))]
    assert body["request_text"] == "Deploy"
