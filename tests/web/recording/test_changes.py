"""Changing a task that is not in a terminal state."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from datetime import datetime
from typing import Any

import pytest

from audit.history.states import State
from tests.api import FULL_TASK, TASKS, fields, get, patch, post, recorded
from tests.conftest import Client, execute

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_task_moves_forwards_only(client: Client) -> None:
    moves = list(itertools.product(State, State))
    order = list(State)
    expected = {
        (old, new): 200
        if old == new or (not old.is_terminal and order.index(old) <= order.index(new))
        else 409
        for old, new in moves
    }

    ids = {move: await recorded(client, status=move[0]) for move in moves}
    actual = {move: (await patch(client, ids[move], {"status": move[1]}))[0] for move in moves}

    assert expected == actual
    states = {move: (await get(client, ids[move]))["status"] for move in moves}
    assert {m: m[1] if expected[m] == 200 else m[0] for m in moves} == states


async def test_a_change_answers_with_the_task_as_it_is_now(client: Client) -> None:
    sent = FULL_TASK | {"task_id": str(uuid.uuid4())}
    await post(client, sent)
    before = await get(client, sent["task_id"])
    change = {
        "status": "failed",
        "approved_at": "2026-01-01T00:00:00.000000Z",
        "completed_at": "2026-01-02T00:00:00.000000Z",
        "services_touched": ["z", "a"],
        "outcome": {"action_type": "restart", "n": 12345678901234567890},
        "estimated_resources": {"cpu": 2},
        "actual_resources": {"cpu": 3},
        "external_ai_used": {"model": "🚀"},
        "error_message": "no space left",
        "suggestions": ["retry"],
    }

    status, shown = await patch(client, sent["task_id"], change)

    assert (200, before | change) == (status, shown)
    assert shown == await get(client, sent["task_id"])


async def test_members_that_a_change_leaves_out_stay(client: Client) -> None:
    task_id = await recorded(client, **{**FULL_TASK, "task_id": str(uuid.uuid4())})
    before = await get(client, task_id)

    assert (200, before) == await patch(client, task_id, {})
    assert (200, before) == await patch(client, task_id, {"status": "executing"})


async def test_null_clears_what_may_be_null(client: Client) -> None:
    task_id = await recorded(client, **{**FULL_TASK, "task_id": str(uuid.uuid4())})
    before = await get(client, task_id)
    names = "outcome estimated_resources actual_resources external_ai_used error_message"
    change = dict.fromkeys([*names.split(), "suggestions", "approved_at", "completed_at"])

    status, shown = await patch(client, task_id, {**change, "services_touched": None})

    assert (200, before | change | {"services_touched": []}) == (status, shown)


@pytest.mark.parametrize(
    ("status", "field"),
    [
        ("approved", "approved_at"),
        ("completed", "completed_at"),
        ("failed", "completed_at"),
        ("rejected", "completed_at"),
    ],
)
async def test_the_time_of_a_transition_is_the_servers_unless_it_is_given(
    client: Client, dsn: str, status: str, field: str
) -> None:
    one, other = await recorded(client, status="pending"), await recorded(client, status="pending")
    given = "2026-05-05T05:05:05.555555Z"
    [(before,)] = execute(dsn, "SELECT clock_timestamp()")

    _, by_server = await patch(client, one, {"status": status})
    _, by_client = await patch(client, other, {"status": status, field: given})

    [(after,)] = execute(dsn, "SELECT clock_timestamp()")
    assert before <= datetime.fromisoformat(by_server[field]) <= after
    assert given == by_client[field]


async def test_a_transition_keeps_a_time_that_was_recorded_before(client: Client) -> None:
    given = "2026-05-05T05:05:05.000000Z"
    task_id = await recorded(client, status="pending", approved_at=given, completed_at=given)

    await patch(client, task_id, {"status": "approved"})
    _, shown = await patch(client, task_id, {"status": "completed"})

    assert (given, given) == (shown["approved_at"], shown["completed_at"])


async def test_a_skipped_state_has_no_time(client: Client) -> None:
    task_id = await recorded(client, status="pending")

    _, executing = await patch(client, task_id, {"status": "executing"})

    assert (None, None) == (executing["approved_at"], executing["completed_at"])


@pytest.mark.parametrize(
    "change",
    [{"status": "completed"}, {"error_message": "late"}, {"status": "failed", "outcome": {}}],
)
async def test_a_terminal_task_never_changes(client: Client, change: dict[str, Any]) -> None:
    task_id = await recorded(client, status="failed")
    before = await get(client, task_id)

    assert (await patch(client, task_id, change))[0] == 409
    assert before == await get(client, task_id)


@pytest.mark.parametrize(
    "field", ["task_id", "project_id", "request_text", "created_by", "created_at", "recorded_at"]
)
async def test_a_field_that_may_not_change_is_refused_by_name(client: Client, field: str) -> None:
    task_id = await recorded(client, status="pending")
    before = await get(client, task_id)

    status, body = await patch(client, task_id, {"status": "failed", field: before[field]})

    assert status == 409
    assert field in body["detail"]
    assert before == await get(client, task_id)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"extra": 1}, "extra"),
        ({"intent": "x"}, "intent"),
        ({"status": None}, "status"),
        ({"status": "done"}, "status"),
        ({"status": []}, "status"),
        ({"services_touched": ["a", "a"]}, "services_touched"),
        ({"services_touched": [str(n) for n in range(101)]}, "services_touched"),
        ({"outcome": []}, "outcome"),
        ({"outcome": {"action_type": "a" * 256}}, "outcome"),
        ({"suggestions": {}}, "suggestions"),
        ({"error_message": 1}, "error_message"),
        ({"completed_at": "yesterday"}, "completed_at"),
        ({"approved_at": 0}, "approved_at"),
        ([], ""),
        ("status", ""),
        (None, ""),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_a_change_of_the_wrong_type_is_refused_and_named(
    client: Client, change: Any, field: str
) -> None:
    task_id = await recorded(client, status="pending")

    status, body = await patch(client, task_id, change)

    assert (422, [field]) == (status, fields(body))


async def test_an_unknown_task_is_not_found(client: Client) -> None:
    unknown = str(uuid.uuid4())

    assert (await client.get(f"{TASKS}/{unknown}")).status == 404
    assert (await patch(client, unknown, {"status": "failed"}))[0] == 404


async def test_an_id_may_be_written_in_capitals(client: Client) -> None:
    task_id = await recorded(client)

    assert task_id == (await get(client, task_id.upper()))["task_id"]


async def test_only_one_of_several_final_states_sent_at_once_wins(client: Client) -> None:
    task_id = await recorded(client, status="executing")
    ends = ["completed", "failed", "rejected"] * 6

    answers = await asyncio.gather(*(patch(client, task_id, {"status": end}) for end in ends))

    # A change that came again is answered like the first one.
    assert [200] * 6 + [409] * 12 == sorted(status for status, _ in answers)
    [winner] = {body["status"] for status, body in answers if status == 200}
    assert winner == (await get(client, task_id))["status"]


async def test_changes_of_other_fields_sent_at_once_are_all_kept(client: Client) -> None:
    task_id = await recorded(client, status="executing")
    change = {
        "outcome": {"a": 1}, "error_message": "b", "suggestions": ["c"], "status": "executing",
        "external_ai_used": {"d": 4}, "services_touched": ["e"], "actual_resources": {"f": 6},
    }  # fmt: skip

    await asyncio.gather(*(patch(client, task_id, {name: change[name]}) for name in change))

    assert change == {name: (await get(client, task_id))[name] for name in change}
