"""A task with equal content is a duplicate, even if its numbers are written differently."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime
from typing import Any

import pytest

from audit.errors import Conflict
from audit.history.parsing import TaskBatch
from audit.history.service import AuditService
from tests.conftest import task

OBJECTS = ("outcome", "estimated_resources", "actual_resources", "external_ai_used")

#: Spellings of one value, as JSON text.
EQUAL = [
    ("1", "1.0", "1e0", "1.000", "10e-1", "0.1e1"),
    ("1.5", "1.50", "15e-1", "1.500000"),
    ("0", "0.0", "-0", "-0.0", "0e5", "0.000"),
    ("-2", "-2.0", "-2e0"),
    ("100", "100.0", "1e2", "1.0e2"),
    ("0.001", "1e-3", "0.0010"),
    ("[1, [2, {}], []]", "[1.0, [2.00, {}], []]"),
    ('{"a": {"b": [1, null, true, "1.0"]}}', '{"a": {"b": [1.0, null, true, "1.0"]}}'),
]
#: Values that are not equal.
DIFFERENT = [
    ("1", "10"),
    ("1.0", "1.05"),
    ("10", "1"),
    ('"1.0"', '"1"'),
    ('"1.0"', "1.0"),
    ('{"1.0": 2.0}', '{"1": 2.0}'),
    ("[1.0]", "[1.0, 1.0]"),
    ("[1.0, 2]", "[2, 1.0]"),
    ("[1.0, {}]", "[1.0, null]"),
    ("[1.0, []]", "[1.0, {}]"),
]


def sent(task_id: str, member: str, value: str) -> TaskBatch:
    """A batch whose member has the value as it is spelled."""
    body = json.dumps([task(task_id=task_id, created_at="2026-03-01T00:00:00Z", **{member: None})])
    text = f"[{value}]" if member == "suggestions" else f'{{"n": {value}}}'
    with_it = body.replace(f'"{member}": null', f'"{member}": {text}')
    return TaskBatch(with_it, ("",), (datetime(2026, 3, 1, tzinfo=UTC),))


@pytest.mark.parametrize("member", [*OBJECTS, "suggestions"])
async def test_equal_numbers_are_equal_content(service: AuditService, member: str) -> None:
    for spellings in EQUAL:
        task_id = str(uuid.uuid4())
        recorded = [
            (await service.recording.record_batches([sent(task_id, member, spelling)])).recorded
            for spelling in spellings
        ]
        assert [1] + [0] * (len(spellings) - 1) == recorded


@pytest.mark.parametrize(("first", "second"), DIFFERENT)
async def test_other_values_are_other_content(
    service: AuditService, first: str, second: str
) -> None:
    task_id = str(uuid.uuid4())
    await service.recording.record_batches([sent(task_id, "outcome", first)])

    with pytest.raises(Conflict):
        await service.recording.record_batches([sent(task_id, "outcome", second)])


#: Members whose values have the same text when they are written one after the other.
ALIKE: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"request_text": "a,b", "created_by": "c"}, {"request_text": "a", "created_by": "b,c"}),
    ({"request_text": 'a","b', "created_by": "c"}, {"request_text": "a", "created_by": 'b","c'}),
    ({"created_by": "NULL"}, {"created_by": None}),
    ({"error_message": ""}, {"error_message": None}),
    ({"services_touched": ["a,b"]}, {"services_touched": ["a", "b"]}),
    ({"services_touched": ["NULL"]}, {"services_touched": ["null"]}),
    ({"error_message": '}\n{"n": 1}'}, {"outcome": {"n": 1}}),
    ({"outcome": {"n": 1}}, {"estimated_resources": {"n": 1}}),
    ({"actual_resources": {}}, {"external_ai_used": {}}),
]


@pytest.mark.parametrize("alike", ALIKE, ids=range(len(ALIKE)))
async def test_a_value_is_not_mistaken_for_that_of_another_member(
    service: AuditService, alike: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    fixed = {"task_id": str(uuid.uuid4()), "created_at": "2026-03-01T00:00:00Z"}
    await service.record([task(**fixed, **alike[0])])

    assert (await service.record([task(**fixed, **alike[0])])).duplicates == 1
    with pytest.raises(Conflict):
        await service.record([task(**fixed, **alike[1])])
