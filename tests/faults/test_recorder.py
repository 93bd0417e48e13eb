"""Programs that record are killed, and the service, the disk or the power fails meanwhile."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from audit.recorder import Recorder, SpoolFull, sender
from audit.recorder.spool import Spool
from tests.conftest import execute
from tests.faults.disk import small_disk
from tests.processes import free_port, serving, workers_of
from tests.waiting import wait_until

pytestmark = pytest.mark.faults

Figure = Callable[[str], None]

KILLS = int(os.environ.get("AUDIT_FAULTS_KILLS", "100"))
DRAINED = int(os.environ.get("AUDIT_FAULTS_DRAINED", "20000"))
DOWN_SECONDS = float(os.environ.get("AUDIT_FAULTS_DOWN_SECONDS", "0"))
TASKS = 5000
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["audit.recorder", __name__])


def record_for_ever(url: str, spool: Path, journal: Path, threads: int) -> None:
    """Record tasks, and append each id to a journal when the call has returned."""
    file = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    recorder = Recorder(url, spool=spool)

    def work() -> None:
        while True:
            with recorder.task("killed") as task:
                os.write(file, f"began {task.task_id}\n".encode())
                time.sleep(random.uniform(0, 0.02))
            os.write(file, f"ended {task.task_id}\n".encode())

    for _ in range(threads):
        threading.Thread(target=work).start()


def record_some(url: str, spool: Path, times: Path, tasks: int, opened: int) -> None:
    """Record tasks, of which so many are open when `times` is made, and how long each call took."""
    recorder = Recorder(url, spool=spool)
    taken = []

    def timed(call: Callable[[], object]) -> None:
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)

    open_tasks = [recorder.start(f"open {number}", status="executing") for number in range(opened)]
    times.touch()
    wait_until((times.parent / "down").exists)
    for task in open_tasks:
        timed(task.complete)
    for number in range(opened, tasks):
        scope = recorder.task(f"down {number}")
        timed(scope.__enter__)
        time.sleep(random.uniform(0, 0.02))
        timed(lambda: scope.__exit__(None, None, None))  # noqa: B023 - it is called at once
    recorder.close(0)
    times.write_text("\n".join(map(str, taken)))


@contextlib.contextmanager
def flapping(process: subprocess.Popen[str]) -> Iterator[None]:
    """Kill the worker of the service again and again."""
    stopping = threading.Event()

    def kill() -> None:
        while not stopping.wait(random.uniform(0.1, 1)):
            for worker in workers_of(process):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    yield
    stopping.set()
    thread.join()


def test_what_a_killed_program_recorded_is_on_the_server_once(
    dsn: str, tmp_path: Path, figure: Figure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "_GONE_SECONDS", 0)
    spool, journal = tmp_path / "spool.db", tmp_path / "journal"
    port = free_port()
    url = f"http://127.0.0.1:{port}"

    def kill_some(number: int) -> None:
        for _ in range(number):
            program = FORKS.Process(target=record_for_ever, args=(url, spool, journal, 2))
            program.start()
            assert program.pid
            time.sleep(random.uniform(0, 0.4))
            os.kill(program.pid, signal.SIGKILL)
            program.join()

    kill_some(KILLS // 4)  # while there is no service
    service = serving("--dsn", dsn, "--port", str(port), "--workers", "1", log=subprocess.DEVNULL)
    with service as (process, _, _lines):
        kill_some(KILLS // 4)
        with flapping(process):
            kill_some(KILLS - KILLS // 4 * 2)
        recorder = Recorder(url, spool=spool)
        wait_until(lambda: recorder.stats().running == 0)
        assert recorder.flush(60)
        stats = recorder.stats()
        recorder.close()

    lines = [line.split() for line in journal.read_text().splitlines()]
    began = {task_id for what, task_id in lines if what == "began"}
    ended = {task_id for what, task_id in lines if what == "ended"}
    rows = execute(dsn, "SELECT task_id::text, status::text FROM tasks")
    found = dict(rows)
    figure(f"{KILLS} kills, {len(began)} began, {len(ended)} ended, {len(rows)} recorded")
    assert len(rows) == len(found)
    assert (stats.waiting, stats.refused) == (0, 0)
    assert began <= set(found)
    assert {found[task_id] for task_id in ended} == {"completed"}
    assert {found[task_id] for task_id in began - ended} <= {"completed", "failed"}
    assert set(found.values()) <= {"completed", "failed"}


def test_tasks_of_four_programs_wait_for_a_service_that_is_down(
    dsn: str, tmp_path: Path, figure: Figure
) -> None:
    spool = tmp_path / "spool.db"
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    times = [tmp_path / f"times {number}" for number in range(4)]
    with serving("--dsn", dsn, "--port", str(port), log=subprocess.DEVNULL):
        programs = [
            FORKS.Process(target=record_some, args=(url, spool, path, TASKS // 4, 100))
            for path in times
        ]
        for program in programs:
            program.start()
        wait_until(lambda: all(path.exists() for path in times))
        recorder = Recorder(url, spool=spool)
        assert recorder.flush(60)
    (tmp_path / "down").touch()
    for program in programs:
        program.join(120)
    time.sleep(DOWN_SECONDS)
    waiting = recorder.stats().waiting
    with serving("--dsn", dsn, "--port", str(port), log=subprocess.DEVNULL):
        assert recorder.flush(60)
        stats = recorder.stats()
        recorder.close()

    taken = sorted(float(line) for path in times for line in path.read_text().split())
    figure(
        f"{waiting} records waited; a record took p50 {taken[len(taken) // 2] * 1000:.1f} ms,"
        f" p99 {taken[len(taken) * 99 // 100] * 1000:.1f} ms"
    )
    rows = execute(dsn, "SELECT status::text, count(*) FROM tasks GROUP BY 1")
    assert rows == [("completed", TASKS)]
    assert (stats.waiting, stats.refused) == (0, 0)


def test_a_full_spool_is_sent(dsn: str, tmp_path: Path, figure: Figure) -> None:
    spool = Spool(tmp_path / "spool.db")
    with spool._database.writing() as connection:
        connection.execute(
            "WITH RECURSIVE numbers (n) AS"
            " (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < ?)"
            " INSERT INTO record (task_id, kind, body, made_at) SELECT id, 'new', json_object("
            "'task_id', id, 'request_text', 'Deploy payments release 7', 'status', 'completed',"
            " 'services_touched', json_array('payments'),"
            " 'outcome', json_object('action_type', 'deploy_service')), 0"
            " FROM (SELECT printf('00000000-0000-7000-8000-%012d', n) AS id FROM numbers)",
            (DRAINED,),
        )
    spool.close()
    with serving("--dsn", dsn, "--workers", "1", log=subprocess.DEVNULL) as (_, url, _lines):
        began = time.monotonic()
        recorder = Recorder(url, spool=tmp_path / "spool.db")
        assert recorder.flush(60)
        seconds = time.monotonic() - began
        recorder.close()

    figure(f"{DRAINED / seconds:,.0f} tasks a second")
    assert execute(dsn, "SELECT count(*) FROM tasks") == [(DRAINED,)]


def test_a_copy_of_the_spool_at_any_moment_has_what_was_acknowledged(
    tmp_path: Path, figure: Figure
) -> None:
    """The program is stopped wherever it is, as a power cut would stop it."""
    spool, journal = tmp_path / "spool.db", tmp_path / "journal"
    url = f"http://127.0.0.1:{free_port()}"
    program = FORKS.Process(target=record_for_ever, args=(url, spool, journal, 8))
    program.start()
    assert program.pid
    wait_until(journal.exists)
    for number in range(KILLS):
        time.sleep(random.uniform(0, 0.1))
        os.kill(program.pid, signal.SIGSTOP)
        acknowledged = {line.split()[1] for line in journal.read_text().splitlines()}
        copy = tmp_path / str(number)
        copy.mkdir()
        for path in tmp_path.glob("spool.db*"):
            shutil.copy(path, copy)
        os.kill(program.pid, signal.SIGCONT)

        opened = Spool(copy / "spool.db")
        with opened._database.reading() as connection:
            assert [*map(tuple, connection.execute("PRAGMA integrity_check"))] == [("ok",)]
            stored = {row[0] for row in connection.execute("SELECT task_id FROM record")}
        opened.close()
        shutil.rmtree(copy)
        assert acknowledged <= stored
    program.kill()
    program.join()
    figure(f"{KILLS} copies, {len(acknowledged)} tasks acknowledged at the end")


def test_a_disk_that_is_full_and_has_room_again(dsn: str, tmp_path: Path) -> None:
    reported: list[Exception] = []
    stored = []
    with small_disk(tmp_path / "small", "1m") as resize:
        recorder = Recorder(
            f"http://127.0.0.1:{(port := free_port())}",
            spool=tmp_path / "small" / "spool.db",
            on_error=reported.append,
        )
        with recorder.task("before the disk was full") as before:
            with pytest.raises(SpoolFull):  # noqa: PT012 - the number is not known
                while True:
                    task = recorder.start("Deploy", outcome={"text": "x" * 10_000})
                    stored.append(task.task_id)
            with pytest.raises(SpoolFull):  # noqa: PT012
                while True:
                    stored.append(recorder.start("Deploy").task_id)
        assert recorder.stats().dropped <= 1
        resize("16m")
        with recorder.task("there is room again") as after:
            pass
        with serving("--dsn", dsn, "--port", str(port), log=subprocess.DEVNULL):
            assert recorder.flush(60)
            recorder.close()

    rows = dict(execute(dsn, "SELECT task_id::text, status::text FROM tasks"))
    assert {*stored, before.task_id, after.task_id} == set(rows)
    assert rows[after.task_id] == "completed"
