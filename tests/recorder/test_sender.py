"""What the service gets in the end, whoever records, whatever fails in between."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from audit.errors import Invalid, Unauthenticated, Unavailable
from audit.recorder import Recorder, sender
from audit.recorder.process import Process
from audit.recorder.spool import Holder, Spool
from tests.commandline import audit
from tests.conftest import ago, execute
from tests.processes import API, free_port, get, serving
from tests.recorder.conftest import Look, Record, Run, Statuses
from tests.waiting import wait_until


def test_a_service_that_is_down_gets_each_task_later(
    tmp_path: Path, shared_dsn: str, statuses: Statuses
) -> None:
    port = free_port()
    reported: list[Exception] = []
    url = f"http://127.0.0.1:{port}"
    recorder = Recorder(url, spool=tmp_path / "spool.db", on_error=reported.append)
    with recorder.task("down first"):
        wait_until(lambda: reported)
    with recorder.task("down then"):
        pass
    assert not recorder.flush(0.1)

    with serving("--dsn", shared_dsn, "--port", str(port), log=subprocess.DEVNULL):
        assert recorder.flush(60)
        recorder.close()

    found = statuses()
    assert (found["down first"], found["down then"]) == ("completed", "completed")
    assert [type(error) for error in reported] == [Unavailable]


def test_a_short_task_is_one_record_and_a_long_one_two(recorder: Recorder, url: str) -> None:
    with recorder.task("short") as short:
        pass
    with recorder.task("long") as long:
        assert recorder.flush()
    assert recorder.flush()

    _, first = get(f"{url}{API}/tasks/{short.task_id}/history")
    _, second = get(f"{url}{API}/tasks/{long.task_id}/history")
    assert [event["status"] for event in first["events"]] == ["completed"]
    assert [event["status"] for event in second["events"]] == ["executing", "completed"]


def test_one_task_that_the_service_refuses_does_not_hold_up_the_others(
    make: Record, shared_dsn: str, tmp_path: Path, errors: list[Exception]
) -> None:
    # Nobody can send until all of them wait.
    spool = Spool(tmp_path / "spool.db")
    holder = Holder(Process.current(), "test")
    assert spool.take_lease(holder, 500)
    recorder = make()
    bodies = [
        {"task_id": f"00000000-0000-4000-8000-{number:012}", "request_text": f"poison {number}"}
        for number in range(1000)
    ]
    bodies[617]["created_at"] = ago(days=-2).isoformat()
    with spool._database.writing() as connection:
        connection.executemany(
            "INSERT INTO record (task_id, kind, body, made_at) VALUES (?, 'new', ?, 0)",
            [(body["task_id"], json.dumps(body)) for body in bodies],
        )
    spool.change(bodies[617]["task_id"], '{"status": "completed"}')
    spool.release_lease(holder)

    assert recorder.flush(60)
    rows = execute(shared_dsn, "SELECT request_text FROM tasks WHERE request_text ~ '^poison'")
    assert {text for (text,) in rows} == {f"poison {n}" for n in range(1000) if n != 617}
    assert len(rows) == 999
    (refused,) = spool.refused()
    problem = json.loads(refused.problem)
    assert (refused.task_id, problem["status"]) == (bodies[617]["task_id"], 422)
    assert "created_at" in problem["errors"][0]["field"]
    assert [type(error) for error in errors] == [Invalid]
    assert recorder.stats().refused == 1


def test_a_conflict_is_refused_and_its_changes_are_too(
    make: Record, url: str, shared_dsn: str, tmp_path: Path
) -> None:
    recorder = make()
    first = recorder.start("conflict", outcome={"n": 1})
    assert recorder.flush()
    recorder.close()
    other = Recorder(url, spool=tmp_path / "other.db")
    second = other.start("conflict", outcome={"n": 2}, task_id=first.task_id)
    assert other.flush()

    (refused,) = Spool(tmp_path / "other.db").refused()
    assert json.loads(refused.problem)["status"] == 409
    assert second.task_id == first.task_id
    other.close()


def test_records_wait_for_a_valid_key(tmp_path: Path, dsn: str) -> None:
    made = audit("keys", "create", "--name", "deployer", "--scope", "record", "--dsn", dsn)
    key = made[1].strip()
    reported: list[Exception] = []
    with serving("--dsn", dsn, log=subprocess.DEVNULL) as (_, url, _lines):
        wrong = Recorder(url, key="ak_wrong", spool=tmp_path / "spool.db", on_error=reported.append)
        with wrong.task("Deploy"):
            wait_until(lambda: reported)
        wrong.close(0.1)
        assert wrong.stats().waiting == 2
        right = Recorder(url, key=key, spool=tmp_path / "spool.db")

        assert right.flush(60)
        right.close()

    assert execute(dsn, "SELECT request_text, status FROM tasks") == [("Deploy", "completed")]
    assert {type(error) for error in reported} == {Unauthenticated}


def test_a_change_waits_for_its_task_in_the_spool_of_another_host(
    make: Record, url: str, look: Look, tmp_path: Path
) -> None:
    here = make()
    there = Recorder(url, spool=tmp_path / "there.db")
    lease = Holder(Process.current(), "test")
    there_spool = Spool(tmp_path / "there.db")
    assert there_spool.take_lease(lease, 500)
    task_id = there.start("elsewhere").task_id
    here.resume(task_id).complete()
    with here.task("not held up"):
        pass
    wait_until(lambda: here.stats().waiting == 1)

    there_spool.release_lease(lease)

    assert there.flush(60)
    assert here.flush(60)
    assert look(task_id)["status"] == "completed"
    there.close()


MANY = """
import os, sys, threading
from audit.recorder import Recorder
url, path, name, threads, tasks = sys.argv[1:]
recorder = Recorder(url, spool=path)
def work(thread):
    for number in range(int(tasks)):
        with recorder.task(f"{name} {thread} {number}"):
            pass
running = [threading.Thread(target=work, args=(n,)) for n in range(int(threads))]
for thread in running:
    thread.start()
for thread in running:
    thread.join()
"""


def test_two_processes_and_eight_threads_share_a_spool(
    recorder: Recorder, url: str, run: Run, tmp_path: Path, statuses: Statuses
) -> None:
    spool = tmp_path / "spool.db"
    programs = [run(MANY, url, spool, f"shared {name}", 8, 10) for name in "ab"]
    assert [program.wait(120) for program in programs] == [0, 0]
    assert recorder.flush(60)

    found = {text: status for text, status in statuses().items() if text.startswith("shared")}
    assert found == {
        f"shared {name} {thread} {number}": "completed"
        for name in "ab"
        for thread in range(8)
        for number in range(10)
    }


FORKS = """
import os, sys, threading
from audit.recorder import Recorder
recorder = Recorder(sys.argv[1], spool=sys.argv[2])
stop = threading.Event()
def work():
    number = 0
    while not stop.is_set():
        with recorder.task(f"forked thread {number}"):
            number += 1
    print(number, flush=True)
thread = threading.Thread(target=work)
thread.start()
children = []
for child in range(5):
    with recorder.task(f"forked parent {child}"):
        pid = os.fork()
        if pid == 0:
            for number in range(5):
                with recorder.task(f"forked child {child} {number}"):
                    pass
            if child == 0:
                assert recorder.flush(60)
            os._exit(0)
        children.append(pid)
codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
stop.set()
thread.join()
assert recorder.flush(60)
sys.exit(any(codes))
"""


def test_children_of_a_fork_record_into_the_same_spool(
    url: str, run: Run, tmp_path: Path, statuses: Statuses
) -> None:
    program = run(FORKS, url, tmp_path / "spool.db")
    printed, _ = program.communicate(timeout=120)

    assert program.returncode == 0
    found = {text: status for text, status in statuses().items() if text.startswith("forked")}
    expected = {f"forked parent {child}" for child in range(5)}
    expected |= {f"forked child {child} {number}" for child in range(5) for number in range(5)}
    expected |= {f"forked thread {number}" for number in range(int(printed))}
    assert found == dict.fromkeys(expected, "completed")


LEFT_BY_A_CHILD = """
import os, sys
from audit.recorder import Recorder
recorder = Recorder(sys.argv[1], spool=sys.argv[2])
with recorder.task("left by a child"):
    child = os.fork()
    if child == 0:
        sys.exit()
    os.waitpid(child, 0)
    sys.exit("the parent goes on")
"""


def test_a_child_that_leaves_the_block_of_its_parent_does_not_end_the_task(
    url: str, run: Run, tmp_path: Path, statuses: Statuses
) -> None:
    assert run(LEFT_BY_A_CHILD, url, tmp_path / "spool.db").wait(60) == 1

    assert statuses()["left by a child"] == "failed"
    assert Spool(tmp_path / "spool.db").refused() == []


ENDS = """
import asyncio, sys, threading, time
from audit.recorder import Recorder
recorder = Recorder(sys.argv[1], spool=sys.argv[2])
async def work():
    async with recorder.task("while Python ends"):
        while threading.main_thread().is_alive():
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
threading.Thread(target=asyncio.run, args=[work()]).start()
"""


def test_coroutines_of_a_thread_may_end_after_the_main_thread(
    url: str, run: Run, tmp_path: Path, statuses: Statuses
) -> None:
    assert run(ENDS, url, tmp_path / "spool.db").wait(60) == 0

    assert statuses()["while Python ends"] == "completed"


def test_another_process_goes_on_when_the_sender_is_killed(
    make: Record,
    url: str,
    run: Run,
    tmp_path: Path,
    statuses: Statuses,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sender, "_ORPHANS_SECONDS", 0)
    monkeypatch.setattr(sender, "_GONE_SECONDS", 0)
    program = """
import os, signal, sys, time
from audit.recorder import Recorder
recorder = Recorder(sys.argv[1], spool=sys.argv[2])
with recorder.task("killed sender"):
    recorder.flush()
    with recorder.task("left behind"):
        pass
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert run(program, url, tmp_path / "spool.db").wait(60) == -signal.SIGKILL

    assert make().flush(60)
    assert statuses()["left behind"] == "completed"
    wait_until(lambda: statuses()["killed sender"] == "failed")


def test_a_process_that_ends_sends_what_it_can(
    url: str, run: Run, tmp_path: Path, statuses: Statuses
) -> None:
    assert run(MANY, url, tmp_path / "spool.db", "exit", 1, 1).wait(60) == 0

    assert statuses()["exit 0 0"] == "completed"
    assert Spool(tmp_path / "spool.db").size().waiting == 0


def test_many_threads_start_one_sender(recorder: Recorder) -> None:
    def work() -> None:
        with recorder.task("threads"):
            pass

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    names = [thread.name for thread in threading.enumerate()]
    assert names.count("audit-recorder") == 1
