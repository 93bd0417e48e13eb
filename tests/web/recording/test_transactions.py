"""Concurrent requests and failures: a request records all of its tasks or none."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import psycopg
import pytest

from audit.web.state import POOL
from tests.api import FULL_TASK, lines, post, send
from tests.conftest import Client, execute, task
from tests.waiting import until
from tests.web.recording.conftest import count

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize(
    ("last", "status"),
    [
        ({"request_text": ""}, 422),
        ({"request_text": "x", "created_at": "2999-01-01T00:00:00Z"}, 422),
        ({"request_text": "x", "outcome": {"n": float("nan")}}, 400),
        ({"request_text": "x", "task_id": FULL_TASK["task_id"]}, 409),
    ],
    ids=["refused by the service", "refused by a statement", "not JSON", "conflict"],
)
async def test_an_invalid_last_line_records_nothing(
    client: Client, dsn: str, last: dict[str, Any], status: int
) -> None:
    await post(client, FULL_TASK)
    sent = [task() for _ in range(1_499)]

    answered, _ = await send(client, lines(*sent, last))

    assert status == answered
    assert count(dsn, sent) == 0


async def test_the_same_task_sent_at_once_many_times_is_recorded_once(client: Client) -> None:
    sent = task()

    answers = await asyncio.gather(*(post(client, sent) for _ in range(20)))

    assert [200] * 19 + [201] == sorted(status for status, _ in answers)
    assert sum(body["recorded"] for _, body in answers) == 1


async def test_only_one_of_several_contents_sent_at_once_is_recorded(client: Client) -> None:
    sent = [task(task_id=FULL_TASK["project_id"], request_text=str(n)) for n in range(20)]

    answers = await asyncio.gather(*(post(client, one) for one in sent))

    assert [201] + [409] * 19 == sorted(status for status, _ in answers)


async def test_overlapping_batches_in_opposite_orders_do_not_fail(client: Client, dsn: str) -> None:
    sent = [task() for _ in range(600)]
    parts = [sent[:400], sent[200:][::-1], sent[::-1], sent[::2], sent[1::2][::-1], sent]

    answers = await asyncio.gather(*(send(client, lines(*part)) for part in [*parts, *parts]))

    assert {200, 201} >= {status for status, _ in answers}
    assert sum(body["recorded"] for _, body in answers) == 600
    assert count(dsn, sent) == 600


async def test_streams_that_overlap_across_their_batches_do_not_fail(
    client: Client, dsn: str
) -> None:
    sent = [task() for _ in range(2_500)]

    answers = await asyncio.gather(send(client, lines(*sent)), send(client, lines(*sent[::-1])))

    assert {200, 201} >= {status for status, _ in answers}
    assert count(dsn, sent) == 2_500


async def test_a_time_that_is_refused_makes_no_partition(client: Client, dsn: str) -> None:
    sent = [task(created_at=f"{year}-05-05T00:00:00Z") for year in (2002, 2999, 3000)]

    assert (await post(client, sent))[0] == 422
    assert [(0,)] == execute(dsn, "SELECT count(*) FROM task_partitions WHERE since > '2100-01-01'")


async def test_the_next_read_sees_what_was_recorded(client: Client, dsn: str) -> None:
    for _ in range(20):
        name = str(uuid.uuid4())
        sent = task(services_touched=[name])
        await post(client, sent)

        answer = await client.get(f"/api/v1/audit/by-service/{name}")

        assert (await answer.json())["total"] == 1
        assert count(dsn, [sent]) == 1


async def test_commits_wait_for_the_disk(client: Client) -> None:
    pool = client.app[POOL]

    settings = [await pool.fetchval("SHOW synchronous_commit") for _ in range(pool.get_size())]

    assert {"on"} == {*settings}


KILL = (
    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
    " WHERE datname = current_database() AND application_name = 'task-audit'"
)


async def test_sessions_killed_at_any_moment_leave_all_or_nothing(client: Client, dsn: str) -> None:
    for delay_seconds in (0.05, 0.1, 0.2):
        sent = [task() for _ in range(2_000)]
        posting = asyncio.ensure_future(send(client, lines(*sent)))
        await asyncio.sleep(delay_seconds)
        await asyncio.to_thread(execute, dsn, KILL)

        status, _ = await posting

        assert status in (201, 503)
        assert count(dsn, sent) in ((2_000,) if status == 201 else (0, 2_000))
        while status == 503:
            status, _ = await send(client, lines(*sent))
        assert status in (200, 201)
        assert count(dsn, sent) == 2_000


async def test_a_session_killed_before_its_commit_leaves_nothing(client: Client, dsn: str) -> None:
    sent = [task() for _ in range(10)]
    with psycopg.connect(dsn) as connection:
        connection.execute("LOCK TABLE tasks IN SHARE MODE")
        posting = asyncio.ensure_future(post(client, sent))
        await waiting_for_a_lock(dsn)
        execute(dsn, KILL)

        status, _ = await posting

    assert status == 503
    assert count(dsn, sent) == 0


async def waiting_for_a_lock(dsn: str) -> None:
    query = (
        "SELECT 1 FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    await until(lambda: execute(dsn, query))


async def test_a_client_that_leaves_after_its_request_does_not_undo_it(
    client: Client, dsn: str
) -> None:
    sent = [task() for _ in range(10)]
    with psycopg.connect(dsn) as connection:
        connection.execute("LOCK TABLE tasks IN SHARE MODE")
        posting = asyncio.ensure_future(post(client, sent))
        await waiting_for_a_lock(dsn)
        posting.cancel()
        await asyncio.sleep(0.1)

    await until(lambda: count(dsn, sent) > 0)
    assert count(dsn, sent) == 10


async def test_a_client_that_leaves_within_its_body_records_nothing(
    client: Client, dsn: str
) -> None:
    sent = [task() for _ in range(2_000)]

    async def breaks_off() -> AsyncIterator[bytes]:
        yield lines(*sent)
        await asyncio.sleep(0.2)
        raise ConnectionAbortedError

    with pytest.raises(aiohttp.ClientError):
        await send(client, breaks_off())

    assert count(dsn, sent) == 0
    assert (await send(client, lines(*sent)))[0] == 201
