"""The method `export` of both clients."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import threading
import time
from pathlib import Path
from typing import Any, Literal

import pytest

from audit.client import AsyncClient, Invalid, Unavailable, WrongFile
from tests.client.conftest import Connect
from tests.client.proxy import CUT_BEFORE, CUT_WITHIN, FaultProxy, Refusal
from tests.conftest import ago, task

#: The names of an export that is complete.
ENDS = ("", ".manifest.json")


@pytest.fixture
def ids(client: Any, me: str) -> list[str]:
    """The ids of some tasks of `me`, the newest first."""
    tasks = [
        task(created_at=ago(minutes=n + 1), created_by=me, error_message=f"{n} " * 500)
        for n in range(200)
    ]
    client.record_many(tasks)
    return [str(one["task_id"]) for one in tasks]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def read(file: Path) -> list[str]:
    return [json.loads(line)["task_id"] for line in file.read_bytes().splitlines()]


def test_an_export_is_a_file_with_a_manifest(
    client: Any, me: str, ids: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "tasks.ndjson"
    manifest = client.export(file, created_by=me, last="4h", status=None)

    assert read(file) == ids
    assert (manifest.tasks, manifest.complete, manifest.one_snapshot) == (200, True, True)
    assert manifest.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    stored = json.loads((tmp_path / "tasks.ndjson.manifest.json").read_bytes())
    assert stored == manifest.model_dump(mode="json")

    packed = client.export(
        str(tmp_path / "tasks.csv.gz"),
        format="csv",
        columns=["task_id", "status"],
        raw=True,
        created_by=me,
        service=["payments"],
    )
    assert packed.params["columns"] == "task_id,status"
    assert packed.parts[0]["columns"] == ["task_id", "status"]
    assert packed.parts[0]["raw"] is True
    with pytest.raises(Invalid):
        client.export(tmp_path / "other", created_by=me, columns="x")
    assert not (tmp_path / "other.part").exists()


def test_an_export_that_is_cut_off_is_continued(
    connect: Connect, url: str, me: str, ids: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "tasks.ndjson"
    with FaultProxy(url, CUT_WITHIN, CUT_WITHIN) as proxy:
        client = connect(proxy.url)
        with pytest.raises(Unavailable, match="cut off"):
            client.export(file, created_by=me, last="4h")
        with pytest.raises(WrongFile, match="exists"):
            client.export(file, created_by=me, last="4h")
        with pytest.raises(WrongFile, match="other options"):
            client.export(file, created_by=me, status="failed", resume=True)
        with pytest.raises(Unavailable, match="cut off"):
            client.export(file, created_by=me, last="4h", resume=True)
        manifest = client.export(file, created_by=me, last="4h", resume=True)

    assert read(file) == ids
    assert [False, False, True] == [part["complete"] for part in manifest.parts]
    assert 200 == sum(part["tasks"] for part in manifest.parts) == manifest.tasks
    assert "last" not in manifest.params


@pytest.mark.parametrize("form", ["ndjson", "csv"])
def test_a_part_that_was_changed_is_not_continued(
    connect: Connect,
    url: str,
    me: str,
    ids: list[str],
    tmp_path: Path,
    form: Literal["ndjson", "csv"],
) -> None:
    file, part = tmp_path / "tasks", tmp_path / "tasks.part"
    with FaultProxy(url, CUT_WITHIN) as proxy:
        client = connect(proxy.url)
        with pytest.raises(Unavailable, match="cut off"):
            client.export(file, created_by=me, format=form)
        came = part.read_bytes()
        lines = came.splitlines(keepends=True)
        for changed in (b"".join([*lines[:3], *lines[4:]]), came.replace(b"0 0", b"1 1")):
            part.write_bytes(changed)
            with pytest.raises(WrongFile, match="changed after the export was cut off"):
                client.export(file, created_by=me, format=form, resume=True)
            assert part.read_bytes() == changed
        part.write_bytes(came)
        assert client.export(file, created_by=me, format=form, resume=True).tasks == 200


def test_an_export_that_has_not_begun_is_tried_again(
    connect: Connect, url: str, me: str, ids: list[str], tmp_path: Path
) -> None:
    with FaultProxy(url, CUT_BEFORE, Refusal(503, {"Retry-After": "0"})) as proxy:
        manifest = connect(proxy.url).export(tmp_path / "tasks", created_by=me)
    assert (manifest.tasks, manifest.one_snapshot) == (200, True)

    with (
        FaultProxy(url, Refusal(200, {}, b"{}")) as proxy,
        pytest.raises(Unavailable, match="is not a task-audit service"),
    ):
        connect(proxy.url).export(tmp_path / "other")
    assert not (tmp_path / "other.part").exists()


async def test_the_event_loop_does_not_wait_for_the_disk(
    url: str, me: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    to_disk = os.fsync

    def slow(file: int) -> None:
        has_run = threading.Event()
        loop.call_soon_threadsafe(has_run.set)
        assert has_run.wait(20)
        to_disk(file)

    monkeypatch.setattr(os, "fsync", slow)
    async with AsyncClient(url) as client:
        manifest = await client.export(tmp_path / "tasks", created_by=me)

    assert manifest.complete


async def test_a_cancelled_export_waits_for_the_disk_and_can_be_continued_at_once(
    url: str, me: str, ids: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    to_disk = os.fsync
    before_cancel = 0
    waited = 0

    def slow(file: int) -> None:
        nonlocal before_cancel, waited
        before_cancel -= 1
        if before_cancel == -1:
            loop.call_soon_threadsafe(running.cancel)
            time.sleep(0.3)
            waited += 1
        to_disk(file)

    monkeypatch.setattr(os, "fsync", slow)
    async with AsyncClient(url) as client:
        for number in range(5):  # one for each time that an export waits for the disk
            file = tmp_path / str(number)
            before_cancel = number
            running = asyncio.ensure_future(client.export(file, created_by=me))
            with pytest.raises(asyncio.CancelledError):
                await running
            assert waited == number + 1
            manifest = await client.export(file, created_by=me, resume=True)
            assert (manifest.tasks, read(file)) == (200, ids)
    assert names(tmp_path) == {f"{number}{end}" for number in range(5) for end in ENDS}
