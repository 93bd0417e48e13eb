"""Exports of a running service: memory, readers that stop, and a service that ends."""

from __future__ import annotations

import gzip
import hashlib
import signal
import socket
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import execute
from tests.processes import API, Memory, accepts, connected, fetch, get, serving, workers_of
from tests.waiting import wait_until

#: More than a worker may hold in memory: 30 MB.
TASKS, TEXT_BYTES = 5_000, 6000
MOST_MEMORY = 24 * 1024 * 1024
FILL = (
    "INSERT INTO tasks (task_id, request_text, status, created_at, error_message)"
    f" SELECT gen_random_uuid(), 'x', 'failed', now() - n * interval '5 minutes',"
    f" repeat('0123456789', {TEXT_BYTES // 10}) FROM generate_series(1, {TASKS}) AS n"
)
WAITS_FOR_READER = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    " AND wait_event = 'ClientWrite'"
)


@pytest.fixture
def filled(dsn: str) -> str:
    execute(dsn, FILL)
    return dsn


def request(url: str, query: str = "") -> socket.socket:
    """Ask for an export, and read nothing."""
    client = connected(url)
    client.sendall(f"GET {API}/export?{query} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    return client


def rest_of(client: socket.socket) -> bytes:
    """Read to the end, or until the connection is cut off."""
    pieces = []
    try:
        while piece := client.recv(1024 * 1024):
            pieces.append(piece)
    except ConnectionError:
        pass
    return b"".join(pieces)


def manifests(url: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = get(f"{url}{API}/exports")[1]["exports"]
    return found


def wait_for_reader(dsn: str, exports: int = 1) -> None:
    """Wait until PostgreSQL waits for the readers of so many exports."""
    wait_until(lambda: execute(dsn, WAITS_FOR_READER) == [(exports,)])


@pytest.mark.parametrize(("form", "coding"), [("ndjson", "identity"), ("csv", "gzip")])
def test_memory_is_constant_whatever_the_reader_does(filled: str, form: str, coding: str) -> None:
    with serving("--workers", "1", AUDIT_DSN=filled) as (process, url, _):
        assert fetch(f"{url}{API}/query?limit=1") == 200
        (worker,) = workers_of(process)
        memory = Memory(worker)

        asked = urllib.request.Request(
            f"{url}{API}/export?format={form}", headers={"Accept-Encoding": coding}
        )
        size, digest = 0, hashlib.sha256()
        with urllib.request.urlopen(asked, timeout=60) as response:
            body = gzip.GzipFile(fileobj=response) if coding == "gzip" else response
            while piece := body.read(1024 * 1024):
                size += len(piece)
                digest.update(piece)
        (manifest,) = manifests(url)
        with request(url, f"format={form}") as slow:
            for _ in range(20):
                wait_for_reader(filled)
                assert slow.recv(256 * 1024)
            wait_for_reader(filled)
            grown = memory.grown()

        assert (size, digest.hexdigest()) == (manifest["bytes"], manifest["sha256"])
        assert size > TASKS * TEXT_BYTES > MOST_MEMORY
        assert grown <= MOST_MEMORY


def test_a_reader_that_stops_is_cut_off(filled: str) -> None:
    with serving("--workers", "1", "--request-timeout-seconds", "1", AUDIT_DSN=filled) as (
        _,
        url,
        _,
    ):
        with request(url) as client:
            wait_for_reader(filled)
            wait_until(lambda: manifests(url))
            body = rest_of(client)

        assert not body.endswith(b"0\r\n\r\n")  # the end of a chunked body
        (manifest,) = manifests(url)
        assert not manifest["complete"]
        assert 0 < manifest["tasks"] < TASKS
        assert execute(filled, WAITS_FOR_READER) == [(0,)]
        assert fetch(f"{url}{API}/export?limit=1") == 422


def test_a_reader_that_leaves_frees_its_place(filled: str, tmp_path: Path) -> None:
    options = ["--workers", "2", "--max-exports", "1"]
    with (
        (tmp_path / "log").open("wb") as log,
        serving(*options, log=log, AUDIT_DSN=filled) as (_, url, _),
    ):
        with request(url):
            wait_for_reader(filled)
        wait_until(lambda: fetch(f"{url}{API}/export?created_by=x") == 200)

        wait_until(lambda: len(manifests(url)) == 2)
        assert {False, True} == {each["complete"] for each in manifests(url)}
    assert b"cut off" not in (tmp_path / "log").read_bytes()


def test_lists_are_answered_while_all_places_for_exports_are_taken(filled: str) -> None:
    """Another export is refused, by whatever worker."""
    options = ["--workers", "2", "--pool-size", "1"]
    with (
        serving(*options, AUDIT_DSN=filled) as (_, url, _),
        request(url),
        request(url),
    ):
        wait_for_reader(filled, 2)

        for _ in range(8):
            assert fetch(f"{url}{API}/export") == 503
            assert fetch(f"{url}{API}/query?status=failed&created_by=x") == 200


@pytest.mark.parametrize("is_read", [True, False], ids=["read", "unread"])
def test_a_service_that_stops_lets_an_export_go_on_for_a_while(filled: str, is_read: bool) -> None:
    options = ["--workers", "1", "--request-timeout-seconds", "20" if is_read else "2"]
    with serving(*options, AUDIT_DSN=filled) as (process, url, _):
        with request(url) as client:
            wait_for_reader(filled)
            process.send_signal(signal.SIGTERM)
            wait_until(lambda: not accepts(int(url.rpartition(":")[2])))
            body = rest_of(client) if is_read else b""
            assert process.wait(60) == 0
        assert body.endswith(b"0\r\n\r\n") is is_read

    ((complete, tasks),) = execute(filled, "SELECT complete, tasks FROM exports")
    assert complete is is_read
    assert (tasks == TASKS) is is_read
