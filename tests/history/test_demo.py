"""The made-up history: as much of it as asked for, in order, and shaped like life."""

from __future__ import annotations

import itertools
from collections import Counter
from datetime import UTC, datetime, timedelta
from statistics import median
from typing import Any

import pytest

from audit.history import demo
from audit.history.parsing import MAX_TASKS_IN_ARRAY, batch_of
from audit.history.states import State

UNTIL = datetime(2026, 11, 23, 8, tzinfo=UTC)
DAYS = 90


@pytest.fixture(scope="module")
def history() -> list[dict[str, Any]]:
    return list(demo.generate(20_000, days=DAYS, until=UNTIL))


def times(history: list[dict[str, Any]]) -> list[datetime]:
    return [datetime.fromisoformat(task["created_at"]) for task in history]


@pytest.mark.parametrize(("tasks", "days"), [(1, 1), (7, 3650), (999, 1), (12_345, 31)])
def test_a_history_has_the_requested_number_of_tasks(tasks: int, days: int) -> None:
    assert tasks == sum(1 for _ in demo.generate(tasks, days=days, until=UNTIL))


def test_tasks_are_in_the_order_of_their_creation(history: list[dict[str, Any]]) -> None:
    assert sorted(times(history)) == times(history)


def test_tasks_are_created_within_the_requested_days(history: list[dict[str, Any]]) -> None:
    first, *_, last = times(history)

    assert UNTIL - timedelta(days=DAYS) <= first < UNTIL - timedelta(days=DAYS - 1)
    assert UNTIL - timedelta(hours=1) < last < UNTIL


def test_no_time_of_a_task_is_after_the_end(history: list[dict[str, Any]]) -> None:
    ends = [
        task[name] for task in history for name in ("approved_at", "completed_at") if name in task
    ]

    assert UNTIL >= max(datetime.fromisoformat(end) for end in ends)


def test_every_task_can_be_recorded(history: list[dict[str, Any]]) -> None:
    rest = iter(history)
    batches = [batch_of(part) for part in iter(lambda: [*itertools.islice(rest, 1000)], [])]

    assert MAX_TASKS_IN_ARRAY == 1000
    assert len(history) == sum(len(batch.labels) for batch in batches)


def test_no_id_is_used_twice(history: list[dict[str, Any]]) -> None:
    assert len(history) == len({task["task_id"] for task in history})


def test_every_state_occurs(history: list[dict[str, Any]]) -> None:
    assert {state.value for state in State} == {task["status"] for task in history}


def test_only_tasks_of_the_last_hours_are_open(history: list[dict[str, Any]]) -> None:
    open_since = [
        datetime.fromisoformat(task["created_at"])
        for task in history
        if not State(task["status"]).is_terminal
    ]

    assert UNTIL - timedelta(hours=6) < min(open_since)


def test_few_services_are_touched_by_most_tasks(history: list[dict[str, Any]]) -> None:
    touched = Counter(name for task in history for name in task["services_touched"])

    assert touched.most_common(1)[0][1] > 10 * median(touched.values())


def test_weekends_are_quieter_than_weekdays(history: list[dict[str, Any]]) -> None:
    by_weekday = Counter(at.weekday() for at in times(history))

    assert max(by_weekday[5], by_weekday[6]) < min(by_weekday[day] for day in range(5))


def test_some_hours_are_bursts_of_failures_of_one_service(history: list[dict[str, Any]]) -> None:
    failures = Counter(
        (task["created_at"][:13], task["services_touched"][0])
        for task in history
        if task["status"] == State.FAILED
    )
    ((_, burst),) = failures.most_common(1)
    ordinary = median(failures.values())

    assert burst > 10 * ordinary


@pytest.mark.parametrize("hours", range(0, 7 * 24, 13))
def test_the_last_days_have_a_burst_that_a_deployment_began(hours: int) -> None:
    until = UNTIL + timedelta(hours=hours)
    history = list(demo.generate(20_000, days=DAYS, until=until))
    recent = [
        task
        for task in history
        if datetime.fromisoformat(task["created_at"]) >= until - timedelta(days=7)
    ]
    failed = [task for task in recent if task["status"] == State.FAILED]
    ((service, burst),) = Counter(task["services_touched"][0] for task in failed).most_common(1)
    of_service = [task for task in failed if task["services_touched"][0] == service]
    ((_, same_error),) = Counter(task["error_message"] for task in of_service).most_common(1)
    begin = of_service[len(of_service) // 2]["created_at"]
    before = [
        task
        for task in recent
        if task["services_touched"] == [service] and task["created_at"] < begin
    ]

    assert burst > 15
    assert burst > len(failed) / 5
    assert same_error > burst * 0.7
    assert any(task["request_text"].startswith("Deploy") for task in before)


def test_the_same_seed_makes_the_same_tasks() -> None:
    first, again, other = (
        list(demo.generate(300, days=DAYS, until=UNTIL, seed=seed)) for seed in (5, 5, 6)
    )

    assert first == again
    assert {task["task_id"] for task in first}.isdisjoint(task["task_id"] for task in other)
