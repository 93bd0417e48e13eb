"""Python values are returned as they were recorded, or refused by name."""

from __future__ import annotations

import enum
import json
import uuid
from collections import OrderedDict, namedtuple
from datetime import UTC, date, datetime
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from audit.errors import Invalid, Malformed
from audit.history.service import AuditService
from audit.history.states import State
from audit.history.task import NewTask


class Secret:
    """What a log must never show."""

    def __repr__(self) -> str:
        return "hunter2"


def circular() -> list[Any]:
    made: list[Any] = []
    made.append(made)
    return made


def nested(levels: int) -> Any:
    made: Any = 1
    for _ in range(levels):
        made = [made]
    return made


BAD: dict[str, tuple[Any, str]] = {
    "NaN": (float("nan"), "nan is not a JSON value"),
    "infinity": (float("-inf"), "-inf is not a JSON value"),
    "a set": ({1, 2}, "set is not a JSON value"),
    "bytes": (b"\xff", "bytes is not a JSON value"),
    "an object": (Secret(), "Secret is not a JSON value"),
    "a class": (Secret, "type is not a JSON value"),
    "a datetime": (datetime.now(UTC), "datetime is not a JSON value"),
    "a date": (date(2026, 1, 1), "date is not a JSON value"),
    "a UUID": (uuid.uuid4(), "UUID is not a JSON value"),
    "a Decimal": (Decimal("1.10"), "Decimal is not a JSON value"),
    "a Fraction": (Fraction(1, 3), "Fraction is not a JSON value"),
    "a complex number": (1j, "complex is not a JSON value"),
    "a path": (Path("/"), "PosixPath is not a JSON value"),
    "a generator": ((n for n in range(3)), "generator is not a JSON value"),
    "another mapping": (MappingProxyType({}), "mappingproxy is not a JSON value"),
    "a number as name": ({1: 2}, "has a member whose name is int, not text"),
    "None as name": ({None: 2}, "has a member whose name is NoneType, not text"),
    "a tuple as name": ({(1, 2): 2}, "has a member whose name is tuple, not text"),
    "a name and its number": ({"1": 1, 1: 2}, "has a member whose name is int, not text"),
    "a huge number": (10**1000, "has over 1000 digits"),
    "a number beyond Python's limit": (-(10**5000), "has over 1000 digits"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
async def test_a_value_that_json_does_not_have_is_refused_and_named(
    service: AuditService, case: str
) -> None:
    value, detail = BAD[case]
    done = await service.record([{"request_text": "a"}])

    for field in ("outcome", "actual_resources"):
        with pytest.raises(Invalid) as refused:
            await service.record([{"request_text": "a"}, {field: {"deep": [0, value]}}])
        with pytest.raises(Invalid) as unchanged:
            await service.update(done.task_ids[0], {field: {"deep": [0, value]}})

        for problem, label in ((refused.value, "1."), (unchanged.value, "")):
            assert detail in problem.detail
            assert "hunter2" not in problem.detail
            assert problem.errors is not None
            place = problem.errors[0]["field"]
            assert place in (f"{label}{field}.deep.1", label.rstrip("."))
    assert (await service.get_task(done.task_ids[0])).task.outcome is None
    assert await service.get_task_count() == 1


async def test_a_model_is_checked_like_a_mapping(service: AuditService) -> None:
    with pytest.raises(Invalid, match=r"0\.outcome\.v: nan"):
        await service.record([NewTask(request_text="a", outcome={"v": float("nan")})])


@pytest.mark.parametrize("value", [circular(), nested(64), nested(10_000)])
async def test_a_value_that_is_too_deep_is_refused(service: AuditService, value: Any) -> None:
    with pytest.raises(Invalid, match="nested over 64 levels deep"):
        await service.record([{"request_text": "a", "outcome": {"a": value}}])


async def test_limits_are_those_of_http(service: AuditService) -> None:
    done = await service.record([{"request_text": "a"}])
    for members, name in (
        ({"error_message": "a" * 1_048_577}, "max_task_bytes"),
        ({"error_message": "é" * 524_289}, "max_task_bytes"),
        ({f"m{n}": 1 for n in range(5_000)}, "and 4999 more; the first 20 are listed"),
    ):
        with pytest.raises(Invalid, match=name):
            await service.record([{"request_text": "a", **members}])
        with pytest.raises(Invalid, match=name):
            await service.update(done.task_ids[0], members)


@pytest.mark.parametrize("text", ["a\0b", "\ud800"])
async def test_text_that_postgresql_cannot_store_is_malformed(
    service: AuditService, text: str
) -> None:
    for members in ({"request_text": text}, {"request_text": "a", "outcome": {text: [text]}}):
        with pytest.raises(Malformed):
            await service.record([members])


@pytest.mark.parametrize("task", [None, "a", 1, [], [("request_text", "a")], Secret(), b"{}"])
async def test_a_value_that_is_not_a_task_is_refused(service: AuditService, task: Any) -> None:
    with pytest.raises(Invalid, match="must be a JSON object"):
        await service.record([task])


class Color(enum.StrEnum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


Point = namedtuple("Point", "x y")  # noqa: PYI024 - as programs have them


async def test_python_values_that_equal_json_values_are_recorded(service: AuditService) -> None:
    task_id, project_id = uuid.uuid4(), uuid.uuid4()
    outcome = OrderedDict(
        tuple=(1, 2), point=Point(1, 2), color=Color.RED, level=Level.HIGH, big=10**999,
        small=5e-324, precise=0.1 + 0.2, none=None, true=True, text="\U0001f680 \u2028 \\u0041",
    )  # fmt: skip

    await service.record(
        [
            MappingProxyType(
                {
                    "task_id": task_id,
                    "project_id": project_id,
                    "request_text": "a",
                    "status": State.PENDING,
                    "outcome": outcome,
                }
            )
        ]
    )
    await service.update(task_id, {"actual_resources": outcome, "status": State.FAILED})

    shown = json.loads((await service.get_task(task_id)).json)
    expected = json.loads(json.dumps(outcome))
    assert expected == shown["outcome"] == shown["actual_resources"]
    assert (str(project_id), "failed") == (shown["project_id"], shown["status"])


async def test_null_in_a_new_task_means_not_given(service: AuditService) -> None:
    nothing = dict.fromkeys(set(NewTask.model_fields) - {"request_text"})

    done = await service.record([{**nothing, "request_text": "a"}])

    task = (await service.get_task(done.task_ids[0])).task
    assert (State.PENDING, [], task.recorded_at) == (
        task.status,
        task.services_touched,
        task.created_at,
    )


async def test_null_in_a_change_clears_a_member(service: AuditService) -> None:
    done = await service.record(
        [{"request_text": "a", "services_touched": ["b"], "outcome": {"c": 1}}]
    )

    changed = await service.update(done.task_ids[0], {"services_touched": None, "outcome": None})

    assert ([], None) == (changed.task.services_touched, changed.task.outcome)
    with pytest.raises(Invalid, match="status"):
        await service.update(done.task_ids[0], {"status": None})
