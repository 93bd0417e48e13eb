"""The headers `Link` and `X-Total-Count`, and the parameters `last` and `total`."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from aiohttp import ClientResponse
from yarl import URL

from audit import Invalid
from audit.history.query import AuditQuery, FailuresQuery, parse_query
from audit.history.service import AuditService
from audit.postgres import statements
from tests.conftest import Client, ago, task
from tests.plans import statements_of

API = "/api/v1/audit"


async def record(client: Client, *tasks: dict[str, Any]) -> None:
    answer = await client.post(f"{API}/tasks", json=list(tasks))
    assert answer.status == 201


async def ok(client: Client, url: str | URL, method: str = "GET") -> ClientResponse:
    answer = await client.request(method, url)
    assert answer.status == 200, await answer.text()
    return answer


def link(answer: ClientResponse, rel: str) -> URL | None:
    """The URL that a client of RFC 8288 is led to."""
    found = answer.links.get(rel)
    return None if found is None else URL(str(found["url"]), encoded=True).relative()


# --- Link, X-Total-Count, HEAD --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "service"),
    [
        ("/query?limit=2", "a"),
        ("/query?limit=2&status=completed&service=a&created_by=ada", "a"),
        ("/failures?limit=2&days=90&offset=1", "a"),
        ("/by-service/a%2Fb%20c%3A%C3%A9?limit=2&intent=x&intent=deploy_service", "a/b c:é"),
    ],
)
async def test_all_pages_are_reached_by_links(client: Client, path: str, service: str) -> None:
    status = "failed" if "failures" in path else "completed"
    await record(
        client,
        *(
            task(
                status=status, services_touched=[service], created_by="ada", created_at=ago(days=n)
            )
            for n in range(1, 8)
        ),
    )
    skipped = 1 if "offset" in path else 0
    url: URL | None = URL(API + path, encoded=True)
    found: list[str] = []
    firsts = set()
    totals = set()

    while url is not None:
        answer = await ok(client, url)
        page = await answer.json()
        found += [one["task_id"] for one in page["tasks"]]
        assert (page["next_cursor"] is None) == (link(answer, "next") is None)
        firsts.add(link(answer, "first"))
        totals.add(answer.headers["X-Total-Count"])
        url = link(answer, "next")

    assert 7 - skipped == len(found) == len({*found})
    assert {"7"} == totals
    (first,) = firsts
    assert first is not None
    begun = await (await ok(client, first)).json()
    assert 0 == begun["offset"]
    assert found[0] == begun["tasks"][skipped]["task_id"]


async def test_links_are_relative_and_stay_under_a_prefix(client: Client) -> None:
    await record(client, task(), task())

    answer = await ok(client, f"{API}/query?limit=1")

    first, following = answer.headers["Link"].split(", ")
    assert '<./query?limit=1>; rel="first"' == first
    assert following.startswith("<./query?limit=1&cursor=")
    assert '<./query>; rel="first"' == (await ok(client, f"{API}/query")).headers["Link"]


async def test_links_of_a_cached_answer_are_the_same(client: Client) -> None:
    await record(client, task(), task())

    one, two = [await ok(client, f"{API}/query?limit=1") for _ in range(2)]

    assert one.headers["Link"] == two.headers["Link"]
    assert "2" == one.headers["X-Total-Count"] == two.headers["X-Total-Count"]


async def test_links_that_are_too_long_for_proxies_are_left_out(client: Client) -> None:
    await record(client, task(), task())
    intents = "&".join(f"intent={n:0250}" for n in range(20))

    answer = await ok(client, f"{API}/query?{intents}&intent=deploy_service&limit=1")

    assert "Link" not in answer.headers
    assert (await answer.json())["next_cursor"]


@pytest.mark.parametrize("path", ["/query?limit=1", "/failures", "/by-service/payments?limit=1"])
async def test_head_of_a_list_has_the_headers_of_get(client: Client, path: str) -> None:
    await record(client, task(), task(), task(status="failed"))

    whole, head = await ok(client, API + path), await ok(client, API + path, "HEAD")

    assert b"" == await head.read()
    left = {"Date", "X-Request-ID", "Etag", "ETag"}
    assert {n: v for n, v in whole.headers.items() if n not in left} == {
        n: v for n, v in head.headers.items() if n not in left
    }
    assert {"Link", "X-Total-Count", "Content-Length"} <= {*head.headers}


# --- last -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("last", "span"),
    [
        ("15m", timedelta(minutes=15)),
        ("24h", timedelta(days=1)),
        ("7d", timedelta(days=7)),
        ("8w", timedelta(days=56)),
        ("365d", timedelta(days=365)),
        ("525600m", timedelta(days=365)),
    ],
)
def test_last_is_a_span(last: str, span: timedelta) -> None:
    assert span == parse_query(AuditQuery, {"last": last}).span


@pytest.mark.parametrize(
    "last",
    ["0m", "366d", "53w", "8761h", "525601m", "1y", "1M", "-1d", "1.5h", "7", "d", "7 d", "", "٣d"],
)
def test_last_out_of_bounds_is_refused(last: str) -> None:
    with pytest.raises(Invalid, match=r"last: .* such as 15m, 24h, 7d or 8w, and at most 365d"):
        parse_query(AuditQuery, {"last": last})


def test_last_of_failures_has_the_bounds_of_its_days() -> None:
    assert timedelta(days=90) == parse_query(FailuresQuery, {"last": "90d"}).span
    with pytest.raises(Invalid, match="at most 90d"):
        parse_query(FailuresQuery, {"last": "91d"})
    with pytest.raises(Invalid, match="at most 90d"):
        parse_query(FailuresQuery, {"last": "13w"})


@pytest.mark.parametrize(
    "other", ["days=7", "since=2026-01-01T00:00:00Z", "until=2026-01-01T00:00:00Z"]
)
@pytest.mark.parametrize("route", ["/query", "/failures", "/by-service/a"])
async def test_last_excludes_the_other_time_parameters(
    client: Client, route: str, other: str
) -> None:
    answer = await client.get(f"{API}{route}?last=24h&{other}")

    assert answer.status == 422
    assert ["last"] == [error["field"] for error in (await answer.json())["errors"]]


async def test_last_selects_the_same_tasks_as_days(client: Client) -> None:
    await record(
        client,
        *(task(status="failed", created_at=ago(minutes=n)) for n in (1, 20, 70, 26 * 60, 8 * 1440)),
    )

    async def total(path: str) -> int:
        return int((await (await ok(client, API + path)).json())["total"])

    assert [1, 2, 3, 4, 5] == [
        await total(f"/query?last={last}") for last in ("15m", "1h", "24h", "2d", "2w")
    ]
    assert 5 == await total("/failures?last=2w")
    assert 4 == await total("/failures")
    page = await (await ok(client, f"{API}/query?last=2d&limit=1")).json()
    await ok(client, f"{API}/query?days=2&cursor={page['next_cursor']}")
    assert 422 == (await client.get(f"{API}/query?last=3d&cursor={page['next_cursor']}")).status


async def test_last_in_process(service: AuditService) -> None:
    await service.record([task(created_at=ago(minutes=5)), task(created_at=ago(hours=5))])

    assert 1 == (await service.audit_query(last="1h")).total
    assert 2 == await service.get_task_count(last="1d")
    with pytest.raises(Invalid, match="last"):
        await service.get_failures(last="1h", days=7)


# --- total ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("filters", [{}, {"service": "payments"}, {"created_by": "ada"}])
async def test_page_without_a_total(client: Client, filters: dict[str, str]) -> None:
    await record(client, *(task(created_by="ada", created_at=ago(hours=n)) for n in range(1, 6)))
    query = URL(f"{API}/query").with_query({**filters, "limit": "2"})

    bare = await ok(client, query.update_query(total="none"))
    exact = await ok(client, query.update_query(total="exact"))

    page, whole = await bare.json(), await exact.json()
    assert page["total"] is None
    assert whole["total"] == 5
    assert page["tasks"] == whole["tasks"]
    assert "X-Total-Count" not in bare.headers
    assert "total=none" in bare.headers["Link"]
    third = query.update_query(total="none", offset="4")
    assert 1 == len((await (await ok(client, third)).json())["tasks"])


@pytest.mark.parametrize("filters", [{}, {"created_by": "ada"}])
@pytest.mark.parametrize(("before", "after"), [("none", "exact"), ("exact", "none")])
async def test_cursor_works_with_and_without_a_total(
    client: Client, filters: dict[str, str], before: str, after: str
) -> None:
    await record(client, *(task(created_by="ada", created_at=ago(hours=n)) for n in range(1, 6)))
    query = URL(f"{API}/query").with_query({**filters, "limit": "2"})
    whole = await (await ok(client, query.update_query(limit="5"))).json()

    one = await (await ok(client, query.update_query(total=before))).json()
    two = await (
        await ok(client, query.update_query(total=after, cursor=one["next_cursor"]))
    ).json()
    three = await (
        await ok(client, query.update_query(total=before, cursor=two["next_cursor"]))
    ).json()

    assert whole["tasks"] == [*one["tasks"], *two["tasks"], *three["tasks"]]
    expected = {"none": None, "exact": 5}
    totals = [one["total"], two["total"], three["total"]]
    assert [expected[before], expected[after], expected[before]] == totals
    assert three["next_cursor"] is None


async def test_without_a_total_a_page_of_an_unsupported_filter_takes_one_statement(
    service: AuditService,
) -> None:
    await service.record([task(created_by="ada", created_at=ago(days=n)) for n in range(1, 30)])

    ran = await statements_of(service, AuditQuery(created_by="ada", total="none", limit=5))

    assert [statements.LIST_TASKS] == [statement for statement, _ in ran]
    page = await service.audit_query(created_by="ada", total="none", limit=5)
    assert (None, 5) == (page.total, page.rows)


@pytest.mark.parametrize("value", ["", "no", "None", "0"])
async def test_other_totals_are_refused(client: Client, value: str) -> None:
    answer = await client.get(f"{API}/query?total={value}")

    assert answer.status == 422
    (error,) = (await answer.json())["errors"]
    assert {"field": "total", "detail": "must be exact or none"} == error
