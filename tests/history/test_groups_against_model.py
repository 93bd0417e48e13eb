"""Small writes that arrive together, against a model that makes them one after the other.

Requests for one task may take effect in any order. So there must be an order in which the model
gives each of them the outcome that it had, and leaves the task as it is.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections import Counter
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from audit.errors import Problem
from audit.history.parsing import batch_of
from audit.history.recording import Author
from audit.history.service import AuditService
from audit.history.states import State
from tests.conftest import EMPTY, ago

#: Recorded before; the last two are new.
IDS = [str(uuid.UUID(int=number)) for number in range(1, 7)]
#: All orders of these are tried.
MOST_OF_ONE_TASK = 5
STATES = [State.PENDING, State.APPROVED, State.EXECUTING, State.COMPLETED]
PROJECT, OTHER_PROJECT = uuid.UUID(int=100), uuid.UUID(int=200)
INITIAL, ANOTHER = "the tag that the task had at first", '"another"'

few = settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@dataclass(frozen=True)
class Known:
    """What the model knows of a task."""

    content: tuple[str, State]
    """The text and the state that it was recorded with."""
    status: State
    error_message: str | None = None
    actor: str | None = None
    """Who made the last event of the task."""


@dataclass(frozen=True)
class Record:
    """A request that records a task."""

    task_id: str
    request_text: str
    is_too_late: bool

    def on(self, known: Known | None, _: Known | None, actor: str) -> tuple[str, Known | None]:
        """Return the outcome, and the task afterwards."""
        content = (self.request_text, State.PENDING)
        if self.is_too_late:
            return "Invalid", known
        if known is None:
            return "1 recorded", Known(content, State.PENDING, None, actor)
        return ("0 recorded" if known.content == content else "Conflict"), known

    async def send(self, service: AuditService, _: dict[str, str], author: Author) -> str:
        created_at = {"created_at": ago(hours=-25)} if self.is_too_late else {}
        sent = {**base(self.task_id, self.request_text), **created_at}
        done = await service.recording.record_batches([batch_of([sent])], author)
        assert [self.task_id] == done.ids_as_text
        return f"{done.recorded} recorded"


@dataclass(frozen=True)
class Change:
    """A request that changes a task."""

    task_id: str
    members: dict[str, Any]
    project_id: uuid.UUID | None
    match: str | None
    none_match: str | None

    def on(self, known: Known | None, first: Known | None, actor: str) -> tuple[str, Known | None]:
        """Return the outcome, and the task afterwards."""
        if known is None or self.project_id == OTHER_PROJECT:
            return "TaskNotFound", known
        is_as_at_first = replace(known, actor=None) == first
        if self.match and not (self.match == INITIAL and is_as_at_first):
            return "PreconditionFailed", known
        if self.none_match == INITIAL and is_as_at_first:
            return "PreconditionFailed", known
        after = replace(known, **self.members)
        if after == known:
            return f"{known.status}, {known.error_message}", known
        if known.status.is_terminal or STATES.index(after.status) < STATES.index(known.status):
            return "Conflict", known
        return f"{after.status}, {after.error_message}", replace(after, actor=actor)

    async def send(self, service: AuditService, tags: dict[str, str], author: Author) -> str:
        def tag_of(name: str | None) -> list[str] | None:
            return (
                None
                if name is None
                else [tags.get(self.task_id, ANOTHER) if name == INITIAL else name]
            )

        document = await service.recording.update(
            self.task_id,
            json.dumps(self.members),
            project_id=self.project_id,
            match=tag_of(self.match),
            none_match=tag_of(self.none_match),
            author=author,
        )
        assert self.task_id == str(document.task.task_id)
        return f"{document.task.status}, {document.task.error_message}"


records = st.builds(Record, st.sampled_from(IDS), st.sampled_from("xy"), st.booleans())
changes = st.builds(
    Change,
    st.sampled_from(IDS),
    st.one_of(
        st.fixed_dictionaries({"status": st.sampled_from(STATES)}),
        st.fixed_dictionaries({"error_message": st.sampled_from(["one", "two", None])}),
        st.just({}),
    ),
    st.sampled_from([None, PROJECT, OTHER_PROJECT]),
    st.sampled_from([None, None, INITIAL, ANOTHER]),
    st.sampled_from([None, None, ANOTHER, INITIAL]),
)


def base(task_id: str, request_text: str) -> dict[str, Any]:
    return {"task_id": task_id, "request_text": request_text, "project_id": str(PROJECT)}


@few
@given(
    st.lists(st.sampled_from(STATES), min_size=4, max_size=4),
    st.lists(st.one_of(records, changes, changes), min_size=6, max_size=20).filter(
        lambda sent: max(Counter(one.task_id for one in sent).values()) <= MOST_OF_ONE_TASK
    ),
)
async def test_requests_that_share_a_statement_have_the_outcomes_of_a_model(
    service: AuditService, states: list[State], sent: list[Record | Change]
) -> None:
    async with service.database.pool.acquire() as connection, connection.transaction():
        await connection.execute("; ".join(EMPTY))
    await service.record(
        [
            {**base(task_id, "x"), "status": str(state)}
            for task_id, state in zip(IDS, states, strict=False)
        ]
    )
    first = {
        task_id: Known(("x", state), state) for task_id, state in zip(IDS, states, strict=False)
    }
    tags = {task_id: (await service.get_task(task_id)).etag for task_id in first}

    async def outcome(number: int, one: Record | Change) -> str:
        try:
            return await one.send(service, tags, Author(f"actor {number}", f"request {number}"))
        except Problem as problem:
            return type(problem).__name__

    outcomes = await asyncio.gather(*(outcome(number, one) for number, one in enumerate(sent)))

    left = await read(service)
    for task_id in IDS:
        requests = [(number, one) for number, one in enumerate(sent) if one.task_id == task_id]
        assert any(
            explains(order, outcomes, first.get(task_id), left.get(task_id))
            for order in permutations(requests)
        ), (first.get(task_id), [(one, outcomes[n]) for n, one in requests], left.get(task_id))


def explains(
    order: tuple[tuple[int, Record | Change], ...],
    outcomes: list[str],
    first: Known | None,
    last: tuple[str | None, ...] | None,
) -> bool:
    """Return whether the requests have these outcomes in this order."""
    known = first
    for number, one in order:
        outcome, known = one.on(known, first, f"actor {number}")
        if outcome != outcomes[number]:
            return False
    return last == (known and (known.content[0], known.status, known.error_message, known.actor))


async def read(service: AuditService) -> dict[str, tuple[str | None, ...]]:
    """Return the text, state, error and last actor of each task."""
    rows = await service.database.pool.fetch(
        "SELECT DISTINCT ON (task_id)"
        " task_id::text, request_text, tasks.status::text, error_message, actor"
        " FROM tasks JOIN task_event_queue USING (task_id) ORDER BY task_id, event_id DESC"
    )
    return {task_id: tuple(values) for task_id, *values in rows}
