"""The service used from Python is as strict as over HTTP, and complete without a server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

import audit
from audit import (
    AuditService,
    Conflict,
    Invalid,
    Malformed,
    NewTask,
    Problem,
    TaskNotFound,
    TaskPage,
    Unavailable,
    errors,
)
from audit.history.task import RecordedBody
from tests.conftest import Client, ago, execute, task
from tests.waiting import until

API = "/api/v1/audit"
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/python.md").read_text()
(EXAMPLE,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
CURSOR = "AQAGVOclSUAAAAZUv_Jwoy59nxyeDD9NDppja28LfC0RAAAAAAAAEKB7pF2UdQMtFA"


# --- open -----------------------------------------------------------------------------------------


async def test_open_folds_counts_and_makes_partitions(dsn: str) -> None:
    async with AuditService.open(dsn) as service:
        await service.record([task(), task(status="failed")])
        await until(lambda: not execute(dsn, "SELECT 1 FROM task_count_deltas LIMIT 1"))
        assert await service.get_task_count() == 2
    with pytest.raises(Problem):
        await service.get_task_count()


async def test_open_checks_the_schema(empty_dsn: str) -> None:
    with pytest.raises(Unavailable, match="run `audit migrate`"):
        async with AuditService.open(empty_dsn):
            pass


async def test_open_names_a_database_that_does_not_answer() -> None:
    with pytest.raises(Unavailable):
        async with AuditService.open("postgresql://nobody@127.0.0.1:1/none"):
            pass


@pytest.mark.parametrize("dsn", ["", "nonsense", "mysql://host/audit", None, 5])
async def test_open_refuses_an_invalid_dsn(dsn: Any) -> None:
    with pytest.raises(Invalid, match=r"^dsn: must"):
        async with AuditService.open(dsn):
            pass


# --- iterators ------------------------------------------------------------------------------------


async def test_iterate_tasks_returns_each_task_once_while_others_record(
    service: AuditService,
) -> None:
    history = [task(created_at=ago(minutes=n + 1)) for n in range(25)]
    await service.record(history)
    found = []

    async for one in service.iterate_tasks(limit=4):
        found.append(str(one.task_id))
        await service.record([task(created_at=ago(seconds=1))])

    assert [one["task_id"] for one in history] == [i for i in found if i in set(found)][-25:]
    assert len(found) == len(set(found)) == 25


async def test_iterate_pages_starts_after_a_cursor(service: AuditService) -> None:
    await service.record([task(created_at=ago(minutes=n + 1), status="failed") for n in range(9)])
    first = await service.audit_query(status="failed", limit=4)

    rest = [page async for page in service.iterate_pages("failed", limit=4)]
    after = [
        page async for page in service.iterate_pages("failed", limit=4, cursor=first.next_cursor)
    ]

    assert [4, 4, 1] == [len(page.tasks) for page in rest]
    assert [4, 1] == [len(page.tasks) for page in after]
    assert [] == [one async for one in service.iterate_tasks("rejected")]


async def test_iterators_validate_what_they_are_given(service: AuditService) -> None:
    with pytest.raises(Invalid, match="must be one of"):
        _ = [one async for one in service.iterate_tasks("lost")]


# --- what comes back ------------------------------------------------------------------------------


async def test_ids_of_recorded_tasks_fit_the_other_methods(service: AuditService) -> None:
    done = await service.record([task(task_id=None, status="pending")] * 1)
    (task_id,) = done.task_ids

    assert isinstance(task_id, UUID)
    document = await service.update(task_id, {"status": "approved"})
    assert document.task == (await service.get_task(str(task_id))).task
    assert (await service.update(str(task_id), {"status": "executing"})).task.task_id == task_id


async def test_repr_is_short_and_tasks_are_parsed_once(service: AuditService) -> None:
    await service.record([task(request_text="x" * 60_000) for _ in range(5)])

    page = await service.audit_query()
    document = await service.get_task(page.tasks[0].task_id)

    assert repr(page) == "TaskPage(total=5, limit=100, offset=0, next_cursor=None, rows=5)"
    assert repr(document) == f"TaskDocument(task_id='{page.tasks[0].task_id}', status='completed')"
    assert page.tasks is page.tasks
    assert document.task is document.task


async def test_members_of_later_versions_are_ignored() -> None:
    known = {
        "recorded": 1,
        "duplicates": 0,
        "task_ids": ["7d9f1c9e-0c3f-4d0e-9a63-6b6f0b7c2d11"],
    }

    assert RecordedBody.model_validate({**known, "position": 7}).recorded == 1


# --- as strict as HTTP ----------------------------------------------------------------------------

WRONG: list[tuple[str, dict[str, Any], str]] = [
    # Parameters that exclude each other, whatever their value.
    ("failures", {"days": 7, "since": "2026-01-01T00:00:00Z"}, "days"),
    ("failures", {"days": 7, "until": "2026-01-01T00:00:00Z"}, "days"),
    ("query", {"offset": 0, "cursor": CURSOR}, "offset"),
    ("query", {"days": 7, "last": "7d"}, "last"),
    ("failures", {"last": "7d", "since": "2026-01-01T00:00:00Z"}, "last"),
    # Out of bounds.
    ("failures", {"days": 91}, "days"),
    ("query", {"days": 0}, "days"),
    ("failures", {"last": "91d"}, "last"),
    ("query", {"last": "0m"}, "last"),
    ("query", {"limit": 0}, "limit"),
    ("query", {"offset": -1}, "offset"),
    # Empty.
    ("query", {"service": ""}, "service"),
    ("query", {"status": ""}, "status"),
    ("query", {"created_by": ""}, "created_by"),
    ("query", {"cursor": ""}, "cursor"),
    ("query", {"last": ""}, "last"),
    ("query", {"total": ""}, "total"),
    ("query", {"since": ""}, "since"),
    # Unknown.
    ("query", {"colour": "red"}, "colour"),
    ("failures", {"status": "failed"}, "status"),
    ("query", {"status": "lost"}, "status"),
    ("query", {"project_id": "7"}, "project_id"),
    ("query", {"since": "yesterday"}, "since"),
]


async def ask(service: AuditService, route: str, given: dict[str, Any]) -> TaskPage:
    if route == "failures":
        return await service.get_failures(**given)
    return await service.audit_query(**given)


@pytest.mark.parametrize(("route", "given", "field"), WRONG)
async def test_python_and_http_refuse_values_with_the_same_text(
    service: AuditService, client: Client, route: str, given: dict[str, Any], field: str
) -> None:
    response = await client.get(f"{API}/{route}", params=given)
    body = await response.json()

    with pytest.raises(Invalid) as refused:
        await ask(service, route, given)

    assert response.status == refused.value.status
    assert body["errors"] == refused.value.errors
    assert body["detail"] == refused.value.detail
    assert field in {error["field"] for error in body["errors"]}


NAMES: list[Any] = [[], (), set(), 5, True, b"x", [5], [None], [""], [[]], {"a": 1}, object()]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("service", value) for value in NAMES),
        *(("status", value) for value in NAMES),
        *(("intent", value) for value in NAMES),
        *(("days", value) for value in (True, 7.0, [7], [], "seven", "", object())),
        *(("limit", value) for value in (None, True, 10.0, [10], [], "", object())),
        *(("offset", value) for value in (True, 1.5, [1], [])),
        *(("since", value) for value in (5, [], "2026-01-01", [ago(days=1)], object())),
        *(("created_by", value) for value in (5, [], ["ada"], b"ada")),
        *(("project_id", value) for value in (5, [], [uuid4()], b"7")),
        *(("last", value) for value in (7, "7", "1y", ["7d"], timedelta(days=7))),
        *(("total", value) for value in (5, True, "some", ["none"])),
        *(("cursor", value) for value in (5, [], ["AAAA"], b"AAAA", "AAAA")),
        *(("outcome", value) for value in (5, [], [1], {"a": float("nan")}, {"a": {1, 2}}, "[]")),
    ],
)
async def test_a_value_of_the_wrong_type_is_invalid_and_named(
    service: AuditService, name: str, value: object
) -> None:
    with pytest.raises(Invalid) as refused:
        await service.audit_query(**{name: value})  # type: ignore[arg-type]

    assert [name] == [error["field"] for error in refused.value.errors or []]


async def test_none_means_not_given(service: AuditService) -> None:
    await service.record([task(status="failed")])
    filters = dict.fromkeys(("service", "intent", "since", "until", "created_by", "cursor"))

    assert (await service.get_failures(days=None, offset=None, **filters)).total == 1  # type: ignore[arg-type]
    assert await service.get_task_count(status=None, project_id=None, outcome=None) == 1


@pytest.mark.parametrize("name", ["limit", "offset", "cursor", "total"])
async def test_get_task_count_accepts_no_page_parameters(service: AuditService, name: str) -> None:
    with pytest.raises(Invalid, match=f"{name}: a count has no pages"):
        await service.get_task_count(**{name: 1})  # type: ignore[arg-type]


async def test_default_of_days_is_a_week_unless_another_time_is_given(
    service: AuditService,
) -> None:
    await service.record([task(status="failed", created_at=ago(days=n)) for n in (1, 50)])

    assert (await service.get_failures()).total == 1
    assert (await service.get_failures(since=ago(days=60))).total == 2
    assert (await service.get_failures(until=ago(days=20))).total == 1


@pytest.mark.parametrize("task_id", ["nonsense", "", 5, None, b"x", [], [uuid4()], object()])
async def test_an_invalid_task_id_is_named(service: AuditService, task_id: Any) -> None:
    for call in (service.get_task(task_id), service.update(task_id, {"status": "failed"})):
        with pytest.raises(Invalid) as refused:
            await call
        assert [error["field"] for error in refused.value.errors or []] == ["task_id"]


NO_TASKS: list[Any] = [
    *(5, None, "x", b"x", object(), {"request_text": "x"}, NewTask(request_text="x"), [], ()),
    *([5], [None], ["x"], [[]], [{}], [{5: 1}], [{"request_text": 5}], [{"request_text": ""}]),
    [{"request_text": "x", "colour": "red"}],
    [{"request_text": "x", "outcome": {1: 2}}],
    [{"request_text": "x", "outcome": {"a": object()}}],
    [{"request_text": "x", "services_touched": {"a"}}],
    [{"request_text": "x", "created_at": "yesterday"}],
]
NO_CHANGES: list[Any] = [5, None, "x", [], [1], {5: 1}, {"colour": "red"}, {"outcome": {"a": {1}}}]


@pytest.mark.parametrize("tasks", NO_TASKS)
async def test_an_argument_that_is_not_a_list_of_tasks_is_invalid(
    service: AuditService, tasks: Any
) -> None:
    with pytest.raises(Invalid):
        await service.record(tasks)

    assert await service.get_task_count() == 0


@pytest.mark.parametrize("change", NO_CHANGES)
async def test_an_argument_that_is_not_a_change_is_invalid(
    service: AuditService, change: Any
) -> None:
    (task_id,) = (await service.record([task(status="pending")])).task_ids

    with pytest.raises(Invalid):
        await service.update(task_id, change)


NOTHING: list[Any] = ["", [], (), None]


async def test_get_by_service_requires_a_service(service: AuditService) -> None:
    for nothing in NOTHING:
        with pytest.raises(Invalid, match="service_name"):
            await service.get_by_service(nothing)


# --- types and docs ------------------------------------------------------------------------------


def test_every_error_of_a_method_is_exported() -> None:
    in_process = {Problem, Invalid, Malformed, TaskNotFound, Conflict, Unavailable}
    in_process |= {errors.TimedOut, errors.Forbidden}

    assert {kind.__name__ for kind in in_process} <= set(audit.__all__)
    assert all(hasattr(audit, name) for name in audit.__all__)


def test_docs_name_the_methods() -> None:
    asking = ("get_failures", "get_by_service", "audit_query", "get_task", "get_task_count")
    for name in ("open", *asking, "iterate_tasks", "iterate_pages", "record", "update"):
        assert callable(getattr(AuditService, name))
        assert re.search(rf"`[\w.]*\b{name}\b", PAGE), name


@pytest.fixture
def example(tmp_path: Path) -> Path:
    path = tmp_path / "example.py"
    path.write_text(EXAMPLE)
    return path


def test_example_of_the_docs_runs(example: Path, dsn: str) -> None:
    done = subprocess.run(
        [sys.executable, example],
        capture_output=True, text=True, check=False, env={**os.environ, "AUDIT_DSN": dsn},
    )  # fmt: skip

    assert done.stderr == ""
    lines = done.stdout.splitlines()
    # Recorded in one transaction, they have the same time.
    assert {
        "pending Rotate the database password of payments",
        "failed Deploy checkout 2.14.0",
    } == {*lines[2:4]}
    assert lines[:2] + lines[4:] == [
        "failed True",
        "1 ['Deploy checkout 2.14.0']",
        "[{'field': 'days', 'detail': 'not together with since or until'}]",
        "no task has the id 7d9f1c9e-0c3f-4d0e-9a63-6b6f0b7c2d11",
        "The request conflicts with the recorded history",
    ]


def test_mypy_strict_accepts_the_example_of_the_docs(example: Path, tmp_path: Path) -> None:
    mypy = Path(sys.executable).with_name("mypy")
    done = subprocess.run(
        [mypy, "--strict", "--config-file", "", "--cache-dir", tmp_path / "cache", example],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip

    assert done.stdout == "Success: no issues found in 1 source file\n", done.stderr
