"""A real Celery worker, whose tasks are recorded by the worker and by those who publish them."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from audit.recorder.spool import Spool
from tests.conftest import execute
from tests.needs import needs_installed
from tests.processes import API, get
from tests.waiting import wait_until

PYTHON = Path(sys.prefix) / "integrations" / "bin" / "python"

pytestmark = needs_installed("Celery", ".venv/installed-integrations", found=PYTHON.exists())

APP = """
import os, signal, time
from celery import Celery
from audit.integrations.celery import connect
from audit.recorder import Recorder

app = Celery("deployer", broker=os.environ["BROKER"])
if app.conf.broker_url == "filesystem://":
    app.conf.broker_transport_options = {
        name: os.environ["QUEUE"]
        for name in ("data_folder_in", "data_folder_out", "control_folder")
    }
recorder = Recorder(spool=os.environ["AUDIT_SPOOL"], created_by="deployer")
connect(
    app,
    recorder,
    services=lambda name, args, kwargs: args[:1],
    only=lambda name: name != "deployer.unseen",
)

@app.task(name="deployer.succeed")
def succeed(service): pass

@app.task(name="deployer.fail")
def fail(service): raise ValueError("no room")

@app.task(name="deployer.retried", bind=True, max_retries=2)
def retried(self, service):
    if self.request.retries < 2:
        raise self.retry(countdown=0)

@app.task(name="deployer.die")
def die(service): os.kill(os.getpid(), signal.SIGKILL)

@app.task(name="deployer.wait")
def wait(service): time.sleep(600)

@app.task(name="deployer.unseen")
def unseen(service): pass
"""
#: Publishes without recording, as a program does that does not connect.
PLAIN = """
import os, sys
from celery import Celery
app = Celery("deployer", broker="filesystem://")
app.conf.broker_transport_options = {
    name: os.environ["QUEUE"] for name in ("data_folder_in", "data_folder_out", "control_folder")
}
app.send_task("deployer.succeed", ["plain"], task_id="not a UUID")
"""
#: A worker that runs each line that it reads. `sys.stdin` belongs to Celery, which closes it.
PUBLISHING_WORKER = """
import os, threading
from deployer import *
def obey():
    for line in os.fdopen(os.dup(0)):
        exec(line)
threading.Thread(target=obey, daemon=True).start()
app.Worker(pool="prefork", concurrency=1, without_mingle=True, without_gossip=True).start()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("celery")
    (folder / "queue").mkdir()
    (folder / "deployer.py").write_text(APP)
    return folder


@pytest.fixture(scope="module")
def environment(folder: Path, url: str) -> dict[str, str]:
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("AUDIT_")},
        "AUDIT_URL": url,
        "AUDIT_SPOOL": str(folder / "spool.db"),
        "BROKER": "filesystem://",
        "QUEUE": str(folder / "queue"),
        "PYTHONPATH": str(folder),
        "C_FORCE_ROOT": "1",
    }


@pytest.fixture(scope="module")
def worker(folder: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    command = "-m celery -A deployer worker --pool prefork --concurrency 2 --without-mingle"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [PYTHON, *command.split(), "--without-gossip", "--without-heartbeat"],
            env=environment, cwd=folder, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        yield process
        print((folder / "log").read_text())  # noqa: T201 - pytest shows it if a test fails
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def publish(environment: dict[str, str], code: str) -> None:
    program = f"from deployer import *\n{code}\nrecorder.close()"
    subprocess.run([PYTHON, "-c", program], env=environment, check=True, timeout=60)


def tasks(dsn: str, service: str) -> list[tuple[Any, ...]]:
    return execute(
        dsn,
        "SELECT request_text, status::text, error_message, created_by, outcome->>'action_type'"
        f" FROM tasks WHERE services_touched = ARRAY['{service}']",
    )


def history(dsn: str, url: str, service: str) -> list[str]:
    ((task_id,),) = execute(
        dsn, f"SELECT task_id::text FROM tasks WHERE services_touched = ARRAY['{service}']"
    )
    return [event["status"] for event in get(f"{url}{API}/tasks/{task_id}/history")[1]["events"]]


def test_a_task_is_recorded_from_its_publication_to_its_end(
    worker: object, environment: dict[str, str], shared_dsn: str, url: str
) -> None:
    publish(environment, "print(succeed.delay('success'))")
    wait_until(lambda: tasks(shared_dsn, "success"))
    wait_until(lambda: tasks(shared_dsn, "success")[0][1] == "completed")

    assert tasks(shared_dsn, "success") == [
        ("deployer.succeed", "completed", None, "deployer", "deployer.succeed")
    ]
    assert history(shared_dsn, url, "success")[-1] == "completed"


def test_what_happens_to_tasks_in_a_worker(
    worker: object, environment: dict[str, str], shared_dsn: str
) -> None:
    publish(
        environment,
        "fail.delay('failure'); retried.delay('retries'); die.delay('death');"
        " unseen.delay('unseen'); succeed.apply_async(['expiry'], expires=-1)",
    )
    ends = {
        "failure": ("failed", "ValueError: no room"),
        "retries": ("completed", None),
        "expiry": ("rejected", "expired"),
    }

    def found() -> dict[str, tuple[Any, ...]]:
        return {name: task[1:3] for name in ends for task in tasks(shared_dsn, name)}

    wait_until(lambda: found() == ends)
    wait_until(lambda: [task[1] for task in tasks(shared_dsn, "death")] == ["failed"])

    assert "SIGKILL" in tasks(shared_dsn, "death")[0][2]
    assert tasks(shared_dsn, "unseen") == []


def test_the_worker_records_a_task_that_its_publisher_does_not_record(
    worker: object, environment: dict[str, str], shared_dsn: str
) -> None:
    subprocess.run([PYTHON, "-c", PLAIN], env=environment, check=True, timeout=60)

    wait_until(lambda: [task[1] for task in tasks(shared_dsn, "plain")] == ["completed"])


def test_the_next_task_of_a_worker_after_one_that_was_terminated(
    folder: Path, environment: dict[str, str], shared_dsn: str
) -> None:
    # A process that is terminated may hold the lock of a queue of files. Here, the worker has no
    # other process, and its broker is its own memory, so that the test publishes in the worker.
    task_id = str(uuid4())
    with publishing_worker(folder, environment) as publish:
        publish(f"wait.apply_async(['revoked'], task_id='{task_id}')")
        wait_until(lambda: [task[1] for task in tasks(shared_dsn, "revoked")] == ["executing"])
        publish(f"app.control.revoke('{task_id}', terminate=True)")
        publish("succeed.delay('after the revoked one')")
        wait_until(lambda: [task[1] for task in tasks(shared_dsn, "revoked")] == ["failed"])
        found = partial(tasks, shared_dsn, "after the revoked one")
        wait_until(lambda: [task[1] for task in found()] == ["completed"])

    # Celery reports two reasons, and the first one is recorded.
    assert re.match("revoked while|WorkerLostError", tasks(shared_dsn, "revoked")[0][2])
    assert Spool(environment["AUDIT_SPOOL"]).refused() == []


@contextlib.contextmanager
def publishing_worker(
    folder: Path, environment: dict[str, str]
) -> Iterator[Callable[[str], object]]:
    """Run a worker with one process, and yield what runs a line of code in it."""
    with (folder / "log").open("wb") as log, subprocess.Popen(
        [PYTHON, "-c", PUBLISHING_WORKER], env=environment | {"BROKER": "memory://"},
        stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdin
        standard_input = process.stdin.fileno()
        try:
            yield lambda line: os.write(standard_input, f"{line}\n".encode())
        finally:
            print((folder / "log").read_text())  # noqa: T201 - pytest shows it if a test fails
            os.killpg(process.pid, signal.SIGKILL)
