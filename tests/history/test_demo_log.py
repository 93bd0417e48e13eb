"""The made-up history has the events that an orchestrator would have left."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest

from audit.errors import Invalid
from audit.history import demo
from audit.history.demo_log import record_history
from audit.history.service import AuditService
from audit.history.states import State
from audit.postgres.pool import open_pool
from audit.settings import Settings
from tests.conftest import SERVING, as_role, execute
from tests.conftest import _database as database

UNTIL = datetime(2026, 11, 20, 15, tzinfo=UTC)
TASKS = 900
HISTORY = list(demo.generate(TASKS, days=20, until=UNTIL))
RECENT = (UNTIL - timedelta(days=7)).isoformat()
EVENTS = (
    "SELECT task_id::text, kind::text, status::text, actor, request_id, at, was::text"
    " FROM task_history ORDER BY event_id"
)
PATHS = {
    State.PENDING: ["pending"],
    State.APPROVED: ["pending", "approved"],
    State.EXECUTING: ["pending", "approved", "executing"],
    State.COMPLETED: ["pending", "approved", "executing", "completed"],
    State.FAILED: ["pending", "approved", "executing", "failed"],
    State.REJECTED: ["pending", "rejected"],
}

Event = tuple[Any, ...]


async def load(dsn: str) -> int:
    async with open_pool(Settings(pool_size=1), dsn) as pool:
        return await record_history(AuditService(pool), HISTORY, UNTIL)


@pytest.fixture(scope="module")
def loaded(postgres: str, template: str) -> Iterator[str]:
    for dsn in database(postgres, template):
        assert asyncio.run(load(dsn)) == TASKS
        yield dsn


@pytest.fixture(scope="module")
def timelines(loaded: str) -> dict[str, list[Event]]:
    timelines: dict[str, list[Event]] = {}
    for task_id, *event in execute(loaded, EVENTS):
        timelines.setdefault(task_id, []).append(tuple(event))
    return timelines


def test_every_task_gets_its_last_state(loaded: str) -> None:
    tasks = execute(
        loaded,
        "SELECT task_id::text, status::text, approved_at, completed_at, error_message FROM tasks",
    )

    def at(text: str | None) -> datetime | None:
        return datetime.fromisoformat(text) if text else None

    assert set(tasks) == {
        (
            task["task_id"], task["status"], at(task.get("approved_at")),
            at(task.get("completed_at")), task.get("error_message"),
        )
        for task in HISTORY
    }  # fmt: skip


def test_recent_tasks_go_through_every_state(timelines: dict[str, list[Event]]) -> None:
    recent = [task for task in HISTORY if task["created_at"] >= RECENT]

    assert len(recent) > 200
    assert {task["status"] for task in recent} == set(State)
    for task in recent:
        statuses = [status for _, status, *_ in timelines[task["task_id"]]]
        assert statuses == PATHS[State(task["status"])]


def test_older_tasks_are_recorded_once(timelines: dict[str, list[Event]]) -> None:
    older = [task for task in HISTORY if task["created_at"] < RECENT]

    assert older
    for task in older:
        ((kind, status, actor, *_),) = timelines[task["task_id"]]
        assert (kind, status, actor) == ("recorded", task["status"], "orchestrator")


def test_each_step_has_its_actor_and_a_request_of_its_own(
    timelines: dict[str, list[Event]],
) -> None:
    requests = set()
    for task in HISTORY:
        if task["created_at"] < RECENT:
            continue
        for _, status, actor, request_id, *_ in timelines[task["task_id"]]:
            requests.add(request_id)
            if status == "pending":
                assert actor == "deploy-bot"
            elif status in {"approved", "rejected"}:
                assert actor.endswith("@example.com")
            else:
                assert actor == "orchestrator"

    recent = sum(
        len(timelines[task["task_id"]]) for task in HISTORY if task["created_at"] >= RECENT
    )
    assert len(requests) == recent


def test_events_have_the_times_that_their_tasks_say(timelines: dict[str, list[Event]]) -> None:
    for task in HISTORY:
        events = timelines[task["task_id"]]
        times = {status: at for _, status, _, _, at, _ in events}
        assert all(first < second for first, second in pairwise(times.values()))
        for status, member in [("pending", "created_at"), ("approved", "approved_at"),
                               (task["status"], "completed_at")]:  # fmt: skip
            if status in times and member in task:
                assert times[status] == datetime.fromisoformat(task[member])


def test_events_after_the_loading_have_the_current_time(loaded: str) -> None:
    assert execute(loaded, "SELECT 1 FROM pg_trigger WHERE tgname = 'set_event_time'") == []
    execute(
        loaded,
        "INSERT INTO tasks (task_id, request_text, status, services_touched)"
        " VALUES (gen_random_uuid(), 'now', 'pending', '{}')",
    )
    ((is_now,),) = execute(
        loaded,
        "SELECT at > now() - interval '1 minute' FROM task_history ORDER BY event_id DESC LIMIT 1",
    )
    assert is_now


async def test_two_loads_leave_the_same_events(loaded: str, dsn: str) -> None:
    await load(dsn)

    assert execute(dsn, EVENTS) == execute(loaded, EVENTS)[: len(execute(dsn, EVENTS))]


async def test_a_second_load_changes_nothing(dsn: str) -> None:
    await load(dsn)
    events = execute(dsn, EVENTS)
    await load(dsn)

    assert execute(dsn, EVENTS) == events


async def test_a_role_that_serves_loads_events_of_the_current_time(dsn: str) -> None:
    before = datetime.now(UTC) - timedelta(seconds=1)
    await load(as_role(dsn, SERVING))
    events = execute(dsn, EVENTS)

    assert len(events) > TASKS
    assert all(at >= before for *_, at, _ in events)


async def test_a_load_that_fails_leaves_nothing(dsn: str) -> None:
    broken = {**HISTORY[-1], "request_text": ""}
    async with open_pool(Settings(pool_size=1), dsn) as pool:
        with pytest.raises(Invalid, match="request_text"):
            await record_history(AuditService(pool), [*HISTORY[:-1], broken], UNTIL)

    assert execute(dsn, "SELECT count(*) FROM tasks, task_event_queue") == [(0,)]
    assert execute(dsn, "SELECT 1 FROM pg_trigger WHERE tgname = 'set_event_time'") == []
