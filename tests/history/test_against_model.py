"""The service against a naive model of itself, over random histories, filters and pages."""

from __future__ import annotations

import json
import uuid
from datetime import datetime, timedelta
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from audit.history.paging import Pager
from audit.history.query import AuditQuery
from audit.history.service import AuditService
from audit.history.states import State
from tests.conftest import EMPTY, ago
from tests.history.conftest import SPLIT_ABOVE

CLOCK = ago().replace(microsecond=0)
SERVICES = ["a", "b", "c/d", "é"]
INTENTS = ["deploy", "rotate"]
PEOPLE = ["ada", "alan"]
PROJECTS = [str(uuid.UUID(int=n)) for n in (1, 2)]
#: Few, so that many tasks share one; the edges of `days` are among them.
TIMES = [
    CLOCK - timedelta(days=days, microseconds=microseconds)
    for days in (0, 1, 2, 40)
    for microseconds in (-1, 0, 1)
]

few_tasks = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

outcomes: st.SearchStrategy[Any] = st.none() | st.fixed_dictionaries(
    {"action_type": st.sampled_from(INTENTS)},
    optional={"zone": st.sampled_from(["eu", "us"]), "deep": st.just({"n": [1, 2]})},
)
tasks: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "task_id": st.uuids().map(str),
        "request_text": st.just("x"),
        "status": st.sampled_from(list(State)),
        "created_at": st.sampled_from(TIMES).map(datetime.isoformat),
        "services_touched": st.lists(st.sampled_from(SERVICES), unique=True),
        "outcome": outcomes,
        "created_by": st.none() | st.sampled_from(PEOPLE),
        "project_id": st.none() | st.sampled_from(PROJECTS),
    }
)
histories = st.lists(tasks, max_size=40, unique_by=lambda one: one["task_id"])
windows: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"days": st.sampled_from([1, 2, 40])}),
    st.lists(st.sampled_from(TIMES), min_size=2, max_size=2).map(
        lambda pair: {"since": min(pair), "until": max(pair)}
    ),
    st.fixed_dictionaries({"since": st.sampled_from(TIMES)}),
)
filters: st.SearchStrategy[dict[str, Any]] = st.builds(
    lambda some, window: {**some, **window},
    st.fixed_dictionaries(
        {},
        optional={
            "status": st.lists(st.sampled_from(list(State)), min_size=1, max_size=3),
            "service": st.lists(st.sampled_from([*SERVICES, "none"]), min_size=1, max_size=2),
            "intent": st.lists(st.sampled_from([*INTENTS, "none"]), min_size=1, max_size=2),
            "created_by": st.sampled_from(PEOPLE),
            "project_id": st.sampled_from(PROJECTS),
            "outcome": st.sampled_from(['{"zone":"eu"}', '{"deep":{"n":[2]}}', "{}"]),
        },
    ),
    windows,
)


def contains(whole: Any, part: Any) -> bool:
    """What PostgreSQL's `@>` says of JSON."""
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(
            name in whole and contains(whole[name], value) for name, value in part.items()
        )
    if isinstance(part, list):
        return isinstance(whole, list) and all(
            any(contains(member, value) for member in whole) for value in part
        )
    return bool(whole == part)


def matches(one: dict[str, Any], asked: dict[str, Any]) -> bool:
    outcome = one["outcome"]
    created_at = datetime.fromisoformat(one["created_at"])
    return all(
        (
            "status" not in asked or one["status"] in asked["status"],
            "service" not in asked or set(asked["service"]) <= set(one["services_touched"]),
            "intent" not in asked or (outcome or {}).get("action_type") in asked["intent"],
            "created_by" not in asked or one["created_by"] == asked["created_by"],
            "project_id" not in asked or one["project_id"] == asked["project_id"],
            "outcome" not in asked or contains(outcome, json.loads(asked["outcome"])),
            "days" not in asked or created_at > CLOCK - timedelta(days=asked.get("days", 0)),
            "since" not in asked or created_at >= asked["since"],
            "until" not in asked or created_at < asked["until"],
        )
    )


def expected(history: list[dict[str, Any]], asked: dict[str, Any]) -> list[str]:
    found = [one for one in history if matches(one, asked)]
    found.sort(key=lambda one: (one["created_at"], one["task_id"]), reverse=True)
    return [one["task_id"] for one in found]


async def start_anew(service: AuditService, history: list[dict[str, Any]], folded: int = 0) -> None:
    """Record a history; the counts of its first `folded` tasks are folded, in tiny buckets."""
    service.sources.primary.pager = Pager(portion=3, short=0)
    async with service.database.pool.acquire() as connection, connection.transaction():
        await connection.execute("; ".join(EMPTY))
        await connection.execute(SPLIT_ABOVE.format(2))
    for part in (history[:folded], history[folded:]):
        if part:
            await service.record(part)
        if part and folded:
            await service.upkeep.fold_counts()
            folded = 0


async def ask(service: AuditService, asked: dict[str, Any], **page: Any) -> Any:
    query = AuditQuery.model_validate({**asked, **page})
    return await service.reading.list_tasks(query, clock=CLOCK)


@few_tasks
@given(histories, filters, st.integers(1, 9), st.integers(0, 40))
async def test_pages_by_offset_and_totals_equal_the_model(
    service: AuditService,
    history: list[dict[str, Any]],
    asked: dict[str, Any],
    limit: int,
    folded: int,
) -> None:
    await start_anew(service, history, folded)

    found: list[str] = []
    while True:
        page = await ask(service, asked, limit=limit, offset=len(found))
        found += [str(one.task_id) for one in page.tasks]
        assert page.total == len(expected(history, asked))
        if page.next_cursor is None:
            break

    assert expected(history, asked) == found


@few_tasks
@given(histories, filters, st.lists(st.integers(1, 9), min_size=1), histories, st.integers(0, 40))
async def test_a_crawl_by_cursor_gives_every_task_once_while_others_are_recorded(
    service: AuditService,
    history: list[dict[str, Any]],
    asked: dict[str, Any],
    limits: list[int],
    written: list[dict[str, Any]],
    folded: int,
) -> None:
    await start_anew(service, history, folded)
    before = expected(history, asked)
    known = {one["task_id"] for one in history}
    later = [one for one in written if one["task_id"] not in known]

    found: list[str] = []
    totals = set()
    cursor: dict[str, Any] = {}
    for turn in range(1000):
        page = await ask(service, asked, limit=limits[turn % len(limits)], **cursor)
        found += [str(one.task_id) for one in page.tasks]
        totals.add(page.total)
        if page.next_cursor is None:
            break
        cursor = {"cursor": page.next_cursor}
        if later:
            await service.record([later.pop()])

    assert len(set(found)) == len(found)
    assert before == [one for one in found if one in set(before)]
    assert set(found) - set(before) <= {*expected(written, asked)}
    assert totals == {len(before)}


@few_tasks
@given(histories, filters, st.integers(0, 40))
async def test_counts_equal_the_model(
    service: AuditService, history: list[dict[str, Any]], asked: dict[str, Any], folded: int
) -> None:
    await start_anew(service, history, folded)
    asked = {name: value for name, value in asked.items() if name != "days"}

    assert len(expected(history, asked)) == await service.get_task_count(**asked)
    assert await service.upkeep.check_counts() == []


steps = st.one_of(
    st.tuples(st.just("record"), st.lists(tasks, min_size=1, max_size=9)),
    st.tuples(st.just("change"), st.tuples(st.integers(0, 100), outcomes)),
    st.tuples(st.just("fold"), st.none()),
    st.tuples(st.just("ask"), st.tuples(st.integers(0, 2), st.integers(0, 30), st.integers(1, 9))),
)


@few_tasks
@given(
    st.lists(filters, min_size=3, max_size=3),
    st.lists(steps, min_size=8, max_size=40),
)
async def test_repeated_requests_equal_the_model_while_tasks_change(
    service: AuditService, questions: list[dict[str, Any]], steps: list[tuple[str, Any]]
) -> None:
    """The same three questions again and again, while tasks come, change and are folded."""
    await start_anew(service, [])
    history: dict[str, dict[str, Any]] = {}
    for kind, what in steps:
        if kind == "record":
            new = {one["task_id"]: one for one in what if one["task_id"] not in history}
            await service.record(list(new.values()))
            history |= new
        elif kind == "change":
            place, outcome = what
            still_open = [one for one in history.values() if not State(one["status"]).is_terminal]
            if still_open:
                one = still_open[place % len(still_open)]
                await service.update(one["task_id"], {"outcome": outcome})
                one["outcome"] = outcome
        elif kind == "fold":
            await service.upkeep.fold_counts()
        else:
            number, offset, limit = what
            asked = questions[number]
            page = await ask(service, asked, offset=offset, limit=limit)
            found = [str(one.task_id) for one in page.tasks]
            every = expected(list(history.values()), asked)
            assert (len(every), every[offset : offset + limit]) == (page.total, found)
