"""Exports are cut off at random bytes, and continued until they are complete."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from audit.postgres import embedded, migrate
from tests.commandline import audit, command, ended
from tests.conftest import execute
from tests.processes import fetch, serving, workers_of
from tests.waiting import wait_until

pytestmark = pytest.mark.faults

CUTS = int(os.environ.get("AUDIT_FAULTS_CUTS", "15"))
#: As many bytes come before a cut at most. Compressed, the file has about 1,000 for each task.
MOST = 600_000
#: More than come before all cuts. A service whose PostgreSQL ends sends what it has read before, on
#: a busy machine up to 2,000 tasks.
TASKS = 1000 * CUTS
FILL = (
    "INSERT INTO tasks (task_id, request_text, status, created_at, error_message)"
    " SELECT gen_random_uuid(), 'x', 'failed', now() - n * interval '5 minutes',"
    " (SELECT string_agg(md5(n || ' ' || m), '') FROM generate_series(1, 60) AS m)"
    f" FROM generate_series(1, {TASKS}) AS n"
)
PARTITIONS = (
    "SELECT make_task_partition(now() - n * interval '1 month', 'month')"
    f" FROM generate_series(0, {TASKS // (28 * 24 * 12) + 1}) AS n"
)
NO_PROXY = {"NO_PROXY": "*"}


class Relay:
    """Passes connections on to a service. After so many bytes of a response, it does something."""

    def __init__(self, url: str, limit: int, fault: Callable[[], object]) -> None:
        self._service = urlsplit(url)
        self._left = limit
        self._fault = fault
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._pass_on, args=[client], daemon=True).start()

    def _pass_on(self, client: socket.socket) -> None:
        address = (self._service.hostname or "", self._service.port or 0)
        with suppress(OSError), client, socket.create_connection(address) as service:
            threading.Thread(target=self._send, args=[client, service], daemon=True).start()
            try:
                while piece := service.recv(min(65536, max(self._left, 1))):
                    client.sendall(piece)
                    self._left -= len(piece)
                    if self._left == 0:
                        self._fault()
            finally:
                # The other thread waits for the client, so that `close` alone would not end it.
                client.shutdown(socket.SHUT_RDWR)

    def _send(self, client: socket.socket, service: socket.socket) -> None:
        with suppress(OSError):
            while piece := client.recv(65536):
                service.sendall(piece)


@contextmanager
def relay(url: str, limit: int, fault: Callable[[], object]) -> Iterator[str]:
    made = Relay(url, limit, fault)
    try:
        yield made.url
    finally:
        made.close()


def postmaster(data_dir: Path) -> int | None:
    with suppress(FileNotFoundError):
        return int((data_dir / "postgresql" / "postmaster.pid").read_text().splitlines()[0])
    return None


def test_each_task_is_exported_once_after_random_cuts(
    tmp_path: Path, figure: Callable[[str], None]
) -> None:
    """Of the connection, the client and the worker. PostgreSQL is restarted, and crashes."""
    data_dir = tmp_path / "data"
    file = tmp_path / "tasks.ndjson"
    part = Path(f"{file}.part")
    chosen = random.Random(7)
    cut_at: list[int] = []
    with ExitStack() as stack:
        server = stack.enter_context(embedded.started(data_dir))
        dsn = server.dsn
        migrate.apply(dsn)
        execute(dsn, PARTITIONS, FILL)
        service, url, _ = stack.enter_context(serving("--workers", "1", AUDIT_DSN=dsn))
        running: list[subprocess.Popen[str]] = []
        stopped: set[int] = set()

        def cut_connection() -> None:
            raise ConnectionError

        def kill_client() -> None:
            running[-1].kill()

        def kill_worker() -> None:
            for pid in workers_of(service):
                os.kill(pid, signal.SIGKILL)

        def stop_database(how: signal.Signals) -> None:
            pid = postmaster(data_dir)
            assert pid is not None
            stopped.add(pid)
            os.kill(pid, how)

        def is_ready() -> bool:
            # It is restarted by this thread, since it ends with the thread that has started it.
            server.keep_running()
            is_restarted = postmaster(data_dir) not in {None, *stopped}
            return is_restarted and bool(workers_of(service)) and fetch(f"{url}/readyz") == 200

        faults: list[Callable[[], object]] = [
            cut_connection,
            kill_client,
            kill_worker,
            partial(stop_database, signal.SIGINT),  # fast
            partial(stop_database, signal.SIGKILL),
        ]
        for n in range(CUTS):
            wait_until(is_ready)
            with relay(url, chosen.randint(1, MOST), faults[n % len(faults)]) as address:
                running.append(command("export", "--url", address, "-o", file, "--resume",
                                       **NO_PROXY))  # fmt: skip
                code, _, err = ended(running[-1])
            assert code in {-signal.SIGKILL, 69}, err
            # The next attempt cuts off what there is of an incomplete line.
            cut_at.append(part.read_bytes().count(b"\n") if part.exists() else 0)

        wait_until(is_ready)
        done = audit("export", "--url", url, "-o", str(file), "--resume", **NO_PROXY)
        assert done[0] == 0, done[2]
        expected = execute(
            dsn, "SELECT task_id::text FROM tasks ORDER BY created_at DESC, task_id DESC"
        )
    assert audit("export", "--verify", str(file))[0] == 0

    ids = [json.loads(line)["task_id"] for line in file.read_bytes().splitlines()]
    assert ids == [task_id for (task_id,) in expected]
    manifest = json.loads(Path(f"{file}.manifest.json").read_bytes())
    assert sum(each["tasks"] for each in manifest["parts"]) == TASKS
    assert [each["complete"] for each in manifest["parts"]] == [
        *([False] * (len(manifest["parts"]) - 1)),
        True,
    ]
    assert cut_at == sorted(cut_at)
    figure(f"{CUTS} cuts, {len(manifest['parts'])} parts of {TASKS} tasks")
