"""The three routes that existing clients call, over HTTP: section 3 of the contract."""

from __future__ import annotations

import asyncio
import json
import re
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote

import pytest
from yarl import URL

from audit.history.query import AuditQuery, parse_query
from audit.history.task import TaskPageBody
from audit.web.handlers import asking
from audit.web.state import SERVICE
from tests.conftest import Client, ago, execute, task

API = "/api/v1/audit"


async def record(client: Client, *tasks: dict[str, Any]) -> list[str]:
    answer = await client.post(f"{API}/tasks", json=list(tasks))
    assert answer.status in (200, 201), await answer.text()
    return list((await answer.json())["task_ids"])


async def ask(client: Client, path: str, *pairs: tuple[str, Any], **params: Any) -> dict[str, Any]:
    answer = await client.get(
        API + path, params=[*pairs, *((name, str(value)) for name, value in params.items())]
    )
    assert answer.status == 200, await answer.text()
    page: dict[str, Any] = await answer.json()
    return page


async def refusal(client: Client, path: str, *pairs: tuple[str, Any], **params: Any) -> set[str]:
    """The fields that a 422 names."""
    answer = await client.get(
        API + path, params=[*pairs, *((name, str(value)) for name, value in params.items())]
    )
    assert answer.status == 422, await answer.text()
    return {error["field"] for error in (await answer.json())["errors"]}


def ids(page: dict[str, Any]) -> list[str]:
    return [one["task_id"] for one in page["tasks"]]


async def test_api_failures_endpoint(client: Client) -> None:
    failed, old, _ = await record(
        client,
        task(status="failed"),
        task(status="failed", created_at=ago(days=8)),
        task(status="completed"),
    )

    page = await ask(client, "/failures")

    assert [failed] == ids(page)
    assert page["total"] == 1
    assert [failed, old] == ids(await ask(client, "/failures", days=90))


async def test_api_failures_query_params(client: Client) -> None:
    wanted, other, _ = await record(
        client,
        task(status="failed", services_touched=["search"], created_at=ago(days=2)),
        task(status="failed", services_touched=["search"], created_at=ago(days=3)),
        task(status="failed", services_touched=["media"], created_at=ago(days=2)),
    )

    page = await ask(client, "/failures", service="search", days=30, limit=1)

    assert [wanted] == ids(page)
    assert (2, 1, 0) == (page["total"], page["limit"], page["offset"])
    assert [other] == ids(await ask(client, "/failures", service="search", days=30, offset=1))
    assert {"days"} == await refusal(client, "/failures", days=91)
    assert {"days"} == await refusal(client, "/failures", days=0)
    assert {"status"} == await refusal(client, "/failures", status="failed")


async def test_api_by_service_endpoint(client: Client) -> None:
    new, old, _ = await record(
        client,
        task(services_touched=["search", "media"], status="failed"),
        task(services_touched=["search"], created_at=ago(days=360)),
        task(services_touched=["searching"]),
    )

    assert [new, old] == ids(await ask(client, "/by-service/search"))
    assert [new] == ids(await ask(client, "/by-service/search", status="failed"))
    assert [new] == ids(await ask(client, "/by-service/search", days=1))
    assert [new] == ids(await ask(client, "/by-service/search", service="media"))
    assert [old] == ids(await ask(client, "/by-service/search", limit=1, offset=1))
    assert {"service_name"} == await refusal(client, "/by-service/search", service_name="x")


async def test_api_query_endpoint_combined(client: Client) -> None:
    wanted, *_ = await record(
        client,
        task(services_touched=["a", "b"], status="rejected", created_at=ago(days=4)),
        task(services_touched=["a"], status="completed", created_at=ago(days=4)),
        task(services_touched=["b"], status="rejected", created_at=ago(days=4)),
        task(services_touched=["a"], status="rejected", created_at=ago(days=6)),
        task(services_touched=["a"], status="rejected", outcome={"action_type": "x"}),
    )

    page = await ask(
        client, "/query", status="rejected", service="a", intent="deploy_service", days=5
    )

    assert [wanted] == ids(page)
    assert page["total"] == 1


async def test_api_response_format(client: Client) -> None:
    sent = task(
        status="failed",
        services_touched=["b", "a"],
        created_at="2026-01-02T03:04:05+02:00",
        error_message=None,
        outcome={"action_type": "x", "list": [1, None]},
        created_by="ada",
    )
    await record(client, sent)

    answer = await client.get(f"{API}/query")

    assert answer.content_type == "application/json"
    assert await answer.json() == {
        "tasks": [
            {
                "task_id": sent["task_id"],
                "status": "failed",
                "request_text": sent["request_text"],
                "services_touched": ["b", "a"],
                "outcome": {"action_type": "x", "list": [1, None]},
                "created_at": "2026-01-02T01:04:05.000000Z",
                "completed_at": None,
                "error_message": None,
            }
        ],
        "total": 1,
        "limit": 100,
        "offset": 0,
        "next_cursor": None,
    }
    TaskPageBody.model_validate_json(await answer.read())


async def test_api_empty_results(client: Client) -> None:
    nothing = {"tasks": [], "total": 0, "limit": 100, "offset": 0, "next_cursor": None}

    assert nothing == await ask(client, "/failures")
    assert nothing == await ask(client, "/by-service/nobody")
    assert nothing == await ask(client, "/query", status="failed", intent="none", days=1)


async def test_times_have_microseconds_in_utc(client: Client) -> None:
    sent = task(created_at="2026-03-29T01:30:00.000001+01:00", completed_at=ago(hours=1))
    await record(client, sent)

    (shown,) = (await ask(client, "/query"))["tasks"]

    assert shown["created_at"] == "2026-03-29T00:30:00.000001Z"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", shown["completed_at"])


async def test_service_is_matched_exactly_and_whole(client: Client) -> None:
    await record(client, task(services_touched=["Payments", "pay ments", "payments-api"]))

    assert (await ask(client, "/by-service/payments"))["total"] == 0
    assert (await ask(client, "/by-service/pay%20ments"))["total"] == 1


@pytest.mark.parametrize(
    "name",
    [
        *("a/b", "/", "//", "a%2Fb", "%", "{x}", "{}", "a?b", "a#b", "a+b", "a,b", "a\nb"),
        *("ä ö", "日本", "😀", "'\"\\", ".", "..", "NULL"),
    ],
)
async def test_service_name_in_path_may_hold_any_character(client: Client, name: str) -> None:
    (task_id,) = await record(client, task(services_touched=[name]))

    segment = quote(name, safe="").replace(".", "%2E")
    answer = await client.get(URL(f"{API}/by-service/{segment}", encoded=True))

    assert answer.status == 200, await answer.text()
    assert [task_id] == ids(await answer.json())
    assert [task_id] == ids(await ask(client, "/query", service=name))


async def test_order_is_newest_first_then_by_id(client: Client) -> None:
    same = "2026-05-05T05:05:05.123456Z"
    tasks = [task(created_at=same) for _ in range(5)]
    newer, older = task(created_at="2026-05-06T00:00:00Z"), task(created_at="2026-05-01T00:00:00Z")
    await record(client, older, *tasks, newer)

    page = await ask(client, "/query")

    by_id = sorted((one["task_id"] for one in tasks), reverse=True)
    assert [newer["task_id"], *by_id, older["task_id"]] == ids(page)


async def test_days_count_back_from_the_databases_clock(client: Client, dsn: str) -> None:
    (((now,),)) = execute(dsn, "SELECT date_trunc('second', now())")
    inside = task(created_at=now - timedelta(days=3) + timedelta(seconds=20))
    outside = task(created_at=now - timedelta(days=3) - timedelta(microseconds=1))
    await record(client, inside, outside)

    assert [inside["task_id"]] == ids(await ask(client, "/query", days=3))


async def test_lower_edge_of_days_is_exclusive(client: Client) -> None:
    """The window of a crawl keeps the clock of its first page: move a task onto its edge."""
    tasks = [task(created_at=ago(hours=n)) for n in (1, 2)]
    await record(client, *tasks)
    service = client.app[SERVICE]
    edge = datetime.fromisoformat(tasks[1]["created_at"]) + timedelta(days=1)
    at_edge = await service.reading.list_tasks(AuditQuery(days=1), clock=edge)
    before = await service.reading.list_tasks(
        AuditQuery(days=1), clock=edge - timedelta(microseconds=1)
    )

    assert (1, 2) == (at_edge.total, before.total)


async def test_all_pages_of_a_crawl_share_one_window(client: Client, dsn: str) -> None:
    tasks = [task(created_at=ago(hours=n)) for n in (1, 2, 3)]
    await record(client, *tasks)
    service = client.app[SERVICE]
    clock = datetime.fromisoformat(tasks[2]["created_at"]) + timedelta(days=1, seconds=-1)
    first = await service.reading.list_tasks(AuditQuery(days=1, limit=2), clock=clock)
    later = clock + timedelta(hours=2)
    rest = await service.reading.list_tasks(
        AuditQuery(days=1, limit=2, cursor=first.next_cursor), clock=later
    )

    assert [tasks[2]["task_id"]] == [str(one.task_id) for one in rest.tasks]


async def test_since_is_inclusive_and_until_exclusive(client: Client) -> None:
    at = ["2026-02-01T00:00:00Z", "2026-02-02T00:00:00Z", "2026-02-03T00:00:00Z"]
    first, second, third = await record(client, *(task(created_at=one) for one in at))

    assert [second] == ids(await ask(client, "/query", since=at[1], until=at[2]))
    assert [third, second] == ids(await ask(client, "/query", since=at[1]))
    assert [first] == ids(await ask(client, "/query", until=at[1]))
    assert [] == ids(await ask(client, "/query", since=at[1], until=at[1]))
    assert [second] == ids(
        await ask(client, "/query", since="2026-02-02T02:00:00+02:00", until=at[2])
    )


async def test_since_replaces_the_default_days_of_failures(client: Client) -> None:
    (old,) = await record(client, task(status="failed", created_at=ago(days=50)))

    assert [old] == ids(await ask(client, "/failures", since=ago(days=60).isoformat()))
    assert [old] == ids(await ask(client, "/failures", until=ago(days=40).isoformat()))
    assert {"days"} == await refusal(client, "/failures", days=7, since=ago(days=60).isoformat())


async def test_several_states_and_intents_mean_any(client: Client) -> None:
    failed, rejected, _ = await record(
        client,
        task(status="failed", outcome={"action_type": "a"}, created_at=ago(hours=1)),
        task(status="rejected", outcome={"action_type": "b"}, created_at=ago(hours=2)),
        task(status="completed", outcome={"action_type": "c"}, created_at=ago(hours=3)),
    )

    states = await ask(client, "/query", ("status", "failed"), ("status", "rejected"))
    intents = await ask(client, "/query", ("intent", "a"), ("intent", "b"))

    assert [failed, rejected] == ids(states) == ids(intents)
    assert states["total"] == intents["total"] == 2


async def test_several_services_mean_all(client: Client) -> None:
    both, _, _ = await record(
        client,
        task(services_touched=["a", "b"]),
        task(services_touched=["a"]),
        task(services_touched=["b", "c"]),
    )

    page = await ask(client, "/query", ("service", "a"), ("service", "b"))

    assert [both] == ids(page)
    assert page["total"] == 1


@pytest.mark.parametrize("path", ["/failures", "/by-service/a", "/query"])
async def test_further_parameters_work_on_every_route(client: Client, path: str) -> None:
    project = "7d9f1c9e-0c3f-4d0e-9a63-6b6f0b7c2d11"
    wanted = task(
        status="failed",
        services_touched=["a"],
        created_by="ada",
        project_id=project,
        outcome={"action_type": "x", "target": {"zone": "eu", "n": 1}},
    )
    await record(client, wanted, task(status="failed", services_touched=["a"]))

    for name, value in (
        ("created_by", "ada"),
        ("project_id", project),
        ("intent", "x"),
        ("outcome", json.dumps({"target": {"zone": "eu"}})),
    ):
        page = await ask(client, path, (name, value))

        assert [wanted["task_id"]] == ids(page)
        assert page["total"] == 1
    assert (await ask(client, path, outcome='{"target":{"zone":"us"}}'))["total"] == 0


async def test_crawl_by_cursor_gives_every_task_once(client: Client) -> None:
    same = ago(hours=3)
    sent = await record(client, *(task(created_at=same) for _ in range(23)))

    found: list[str] = []
    page = await ask(client, "/query", limit=5)
    offsets, totals = [page["offset"]], [page["total"]]
    found += ids(page)
    for limit in (1, 7, 1000):
        page = await ask(client, "/query", cursor=page["next_cursor"], limit=limit)
        found += ids(page)
        offsets.append(page["offset"])
        totals.append(page["total"])

    assert sorted(sent, reverse=True) == found
    assert [0, None, None, None] == offsets
    assert [23] * 4 == totals
    assert page["next_cursor"] is None


async def test_page_that_ends_exactly_is_the_last(client: Client) -> None:
    await record(client, *(task() for _ in range(4)))

    first = await ask(client, "/query", limit=2)
    second = await ask(client, "/query", limit=2, cursor=first["next_cursor"])

    assert len(second["tasks"]) == 2
    assert second["next_cursor"] is None


async def test_cursor_is_bound_to_the_filters_not_to_their_order(client: Client) -> None:
    await record(client, *(task(services_touched=["a", "b"], status="failed") for _ in range(3)))
    page = await ask(client, "/query", ("service", "a"), ("service", "b"), ("limit", "1"))
    cursor = page["next_cursor"]

    swapped = await ask(client, "/query", ("service", "b"), ("service", "a"), ("cursor", cursor))

    assert len(swapped["tasks"]) == 2
    assert {"cursor"} == await refusal(client, "/query", service="a", cursor=cursor)
    assert {"cursor"} == await refusal(
        client, "/query", ("service", "a"), ("service", "b"), ("days", "3"), ("cursor", cursor)
    )
    assert {"offset"} == await refusal(
        client, "/query", ("service", "a"), ("service", "b"), ("offset", "0"), ("cursor", cursor)
    )


async def test_a_tampered_cursor_is_refused(client: Client) -> None:
    await record(client, task(), task())
    cursor = (await ask(client, "/query", limit=1))["next_cursor"]

    for place in range(len(cursor)):
        other = "A" if cursor[place] != "A" else "B"
        forged = cursor[:place] + other + cursor[place + 1 :]

        assert {"cursor"} == await refusal(client, "/query", cursor=forged)
    assert {"cursor"} == await refusal(client, "/query", cursor=cursor + "=")
    assert {"cursor"} == await refusal(client, "/query", cursor="page2")


async def test_limit_and_offset_have_their_bounds(client: Client) -> None:
    await record(client, task())

    assert (await ask(client, "/query", limit=1000))["limit"] == 1000
    assert {"limit"} == await refusal(client, "/query", limit=1001)
    assert {"limit"} == await refusal(client, "/query", limit=0)
    assert {"offset"} == await refusal(client, "/query", offset=-1)
    assert (await ask(client, "/query", offset=2**63 - 1))["tasks"] == []
    assert {"offset"} == await refusal(client, "/query", offset=2**63)
    assert {"days"} == await refusal(client, "/query", days=366)
    assert {"days"} == await refusal(client, "/by-service/a", days=366)


async def test_parameters_given_twice_are_refused_unless_they_may_be(client: Client) -> None:
    for name in ("days", "limit", "offset", "since", "until", "created_by", "project_id",
                 "outcome", "cursor"):  # fmt: skip
        assert {name} == await refusal(client, "/query", (name, "1"), (name, "1"))


async def test_page_and_total_are_of_one_snapshot(client: Client, dsn: str) -> None:
    """A statement has one snapshot: what a writer commits while it runs is in neither."""
    stop = asyncio.Event()

    async def write() -> None:
        while not stop.is_set():
            await record(client, *(task(services_touched=["busy"]) for _ in range(7)))

    writer = asyncio.create_task(write())
    try:
        for _ in range(40):
            page = await ask(client, "/by-service/busy", limit=1000)

            assert page["total"] % 7 == 0
            assert len(page["tasks"]) == min(page["total"], 1000)
            if page["total"] > 900:
                break
    finally:
        stop.set()
        await writer


async def test_a_url_is_parsed_once_and_its_page_is_still_current(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed = []

    def parse(model: type[AuditQuery], params: dict[str, list[str]]) -> AuditQuery:
        parsed.append(params)
        return parse_query(model, params)

    monkeypatch.setattr(asking, "parse_query", parse)
    name = f"parsed-{ago().timestamp()}"
    [first] = await record(client, task(services_touched=[name]))
    assert [first] == ids(await ask(client, f"/by-service/{name}"))
    [second] = await record(client, task(services_touched=[name]))

    assert {first, second} == set(ids(await ask(client, f"/by-service/{name}")))
    assert [{"service": [name]}] == parsed

    assert 1 == len(ids(await ask(client, f"/by-service/{name}", limit=1)))
    assert {"limit"} == await refusal(client, f"/by-service/{name}", limit=0)
    assert {"limit"} == await refusal(client, f"/by-service/{name}", limit=0)
    assert 4 == len(parsed)
