"""Every earlier version of a task can be rebuilt, and matches the digest of its event."""

from __future__ import annotations

import json
import random
import uuid
from collections import defaultdict
from typing import Any

import psycopg
import pytest

from audit import AuditService, TaskNotFound
from tests.conftest import execute, task

NUMBERS = (
    *("0", "-0", "-0.0", "1", "1.0", "1.00", "1e0", "1E-7", "1e30", "-1.5e-20", "0.10", "100"),
    *("12345678901234567890123", "3.14159265358979323846264338327950288", "9" * 300, "-2"),
)
TEXTS = (
    *("", " ", "x", "null", "Größe", "🚀", "e\u0301", "\u2028", "\ufeff", "عربي", "\U0010ffff"),
    *('"', "\\", "\\u0041", "\x01\x1f\x7f", "a\r\nb\t", "{}", "' OR 1=1", "long " * 500),
)
TIMES = (
    *("2026-01-01T00:00:00Z", "2026-03-29T02:30:00.000001+01:00", "1970-01-01T00:00:00Z"),
    *("0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z", "2000-02-29T12:00:00.1+14:00"),
)
OBJECTS = ("outcome", "estimated_resources", "actual_resources", "external_ai_used")
#: The triggers that refuse a change, and that log it.
TRIGGERS = ("guard_change", "queue_changed")
STATES = ("pending", "approved", "executing", "completed", "failed", "rejected")


class Maker:
    """Makes random changes."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def value(self, depth: int = 3) -> str:
        """The text of a JSON value."""
        kind = self._random.randrange(6 if depth else 3)
        if kind == 0:
            return self._random.choice(NUMBERS)
        if kind == 1:
            return json.dumps(self._random.choice(TEXTS), ensure_ascii=self._random.random() < 0.5)
        if kind == 2:
            return self._random.choice(("null", "true", "false", "[]", "{}"))
        inner = [self.value(depth - 1) for _ in range(self._random.randrange(4))]
        return f"[{', '.join(inner)}]" if kind == 3 else self._object(inner)

    def _object(self, values: list[str]) -> str:
        names = self._random.sample(TEXTS[:-1], len(values))
        members = (
            f"{json.dumps(name)}: {value}" for name, value in zip(names, values, strict=True)
        )
        return "{" + ", ".join(members) + "}"

    def column(self, name: str) -> Any:
        """A value of a column, as psycopg sends it; often NULL, if it may be."""
        if name == "services_touched":
            return self._random.sample(TEXTS[1:-1], self._random.randrange(4))
        if self._random.random() < 0.3:
            return None
        if name in OBJECTS:
            return self._object([self.value() for _ in range(self._random.randrange(4))])
        if name == "suggestions":
            return f"[{', '.join(self.value() for _ in range(self._random.randrange(4)))}]"
        return self._random.choice(TIMES if name.endswith("_at") else TEXTS)

    def change(self, status: str, *, is_last: bool) -> dict[str, Any]:
        """New values of some columns, or of none."""
        names = (*OBJECTS, "suggestions", "services_touched", "error_message", "approved_at",
                 "completed_at")  # fmt: skip
        chosen = self._random.sample(names, self._random.choice((0, 1, 1, 1, 2, 9)))
        made = {name: self.column(name) for name in chosen}
        if is_last or self._random.random() < 0.2:
            place = STATES.index(status)
            made["status"] = STATES[self._random.randrange(3, 6) if is_last else min(place + 1, 2)]
        return made

    def chance(self, share: float) -> bool:
        return self._random.random() < share

    def zone(self) -> str:
        return self._random.choice(("UTC", "Asia/Kathmandu", "America/St_Johns"))


def change_by_sql(
    connection: psycopg.Connection, task_id: uuid.UUID, change: dict[str, Any]
) -> None:
    """Write columns; without any, write the row as it is."""
    sets = [
        f"{name} = %s::{'jsonb' if name in (*OBJECTS, 'suggestions') else 'text[]'}"
        if name in (*OBJECTS, "suggestions", "services_touched")
        else f"{name} = %s"
        for name in change
    ] or ["error_message = error_message"]
    connection.execute(
        f"UPDATE tasks SET {', '.join(sets)} WHERE task_id = %s", [*change.values(), task_id]
    )


async def test_every_version_is_rebuilt_as_it_was_read(service: AuditService, dsn: str) -> None:
    maker = Maker(11)
    changes = [30] * 90 + [250]
    sent = [
        task(status="pending", outcome=None, services_touched=[], request_text=TEXTS[n % 5] or "x")
        for n in range(len(changes))
    ]
    ids = (await service.record(sent)).task_ids
    seen: dict[uuid.UUID, list[str]] = defaultdict(list)
    with psycopg.connect(dsn, autocommit=True) as connection:
        for task_id, number in zip(ids, changes, strict=True):
            seen[task_id].append((await service.get_task(task_id)).json)
            connection.execute(f"SET timezone = '{maker.zone()}'")
            status = "pending"
            for n in range(number):
                change = maker.change(status, is_last=n == number - 1 and maker.chance(0.8))
                change_by_sql(connection, task_id, change)
                status = change.get("status", status)
                seen[task_id].append((await service.get_task(task_id)).json)
            if maker.chance(0.4):
                connection.execute("SELECT sequence_task_events(700)")

    rebuilt = {task_id: [one async for one in service.iterate_versions(task_id)] for task_id in ids}

    assert seen == {task_id: [one.json for one in some] for task_id, some in rebuilt.items()}
    assert all(one.matches_digest for some in rebuilt.values() for one in some)
    assert sum(map(len, seen.values())) > 2900
    [(in_log, in_queue)] = execute(
        dsn, "SELECT (SELECT count(*) FROM task_events), (SELECT count(*) FROM task_event_queue)"
    )
    assert min(in_log, in_queue) > 100


async def test_changes_lead_from_each_version_to_the_next(service: AuditService, dsn: str) -> None:
    maker = Maker(12)
    (task_id,) = (await service.record([task(status="pending")])).task_ids
    with psycopg.connect(dsn, autocommit=True) as connection:
        for n in range(60):
            change_by_sql(connection, task_id, maker.change("pending", is_last=n == 59))
            if n == 30:
                connection.execute("SELECT sequence_task_events(25)")
    versions = [as_spelled(one.json) async for one in service.iterate_versions(task_id)]

    for limit in (1, 7, 60, 61, 1000):
        events = []
        page = await service.get_history(task_id, limit)
        events += as_spelled(page.events_json)
        while page.next_cursor:
            assert page.rows == limit
            page = await service.get_history(task_id, limit, cursor=page.next_cursor)
            events += as_spelled(page.events_json)

        assert [{}, *map(difference, versions, versions[1:])] == [one["changed"] for one in events]


def difference(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    return {
        name: {"from": before[name], "to": after[name]}
        for name in before
        if before[name] != after[name]
    }


def as_spelled(text: str) -> Any:
    """A JSON value whose numbers are text, so that 1.0 is not 1.00."""
    return json.loads(text, parse_int=str, parse_float=str)


async def test_a_version_that_was_altered_does_not_match_its_digest(
    service: AuditService, dsn: str
) -> None:
    (task_id,) = (await service.record([task(status="pending")])).task_ids
    await service.update(task_id, {"error_message": "late"})
    execute(
        dsn,
        *(f"ALTER TABLE tasks DISABLE TRIGGER {name}" for name in TRIGGERS),
        "UPDATE tasks SET created_by = 'nobody'",
        *(f"ALTER TABLE tasks ENABLE ALWAYS TRIGGER {name}" for name in TRIGGERS),
    )

    versions = [one async for one in service.iterate_versions(task_id)]

    assert [False, False] == [one.matches_digest for one in versions]
    assert [None, "late"] == [one.task.error_message for one in versions]


async def test_versions_of_an_unknown_task_are_not_found(service: AuditService) -> None:
    with pytest.raises(TaskNotFound):
        await anext(service.iterate_versions(uuid.uuid4()))
