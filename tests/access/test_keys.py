"""Keys: who may ask and record, for which project, and from when on no more."""

from __future__ import annotations

import asyncio
import json
import re
import uuid
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from audit.access.identity import Scope
from audit.access.keys import KEY_PREFIX, create_key, list_keys, revoke_key
from audit.errors import Invalid
from audit.web.routes import ROUTES, Route
from tests.api import metric
from tests.conftest import Client, Start, ago, execute, task
from tests.waiting import until

if TYPE_CHECKING:
    from audit.postgres.pool import Pool

API = "/api/v1/audit"
OURS, THEIRS = uuid.UUID(int=1), uuid.UUID(int=2)


async def make(pool: Pool, *scopes: Scope, project_id: uuid.UUID | None = None) -> str:
    name = "-".join([*scopes, str(uuid.uuid4())[:8]])
    key, _ = await create_key(pool, name, frozenset(scopes), project_id)
    return key


def bearing(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def status_of(client: Client, path: str, key: str | None = None) -> int:
    response = await client.get(API + path, headers=bearing(key) if key else {})
    return response.status


async def soon(client: Client, path: str, key: str | None, status: int) -> None:
    async with asyncio.timeout(60):
        while await status_of(client, path, key) != status:  # noqa: ASYNC110 - of the service
            await asyncio.sleep(0.02)


def key_reads(client: Client) -> float:
    """How often the service has read the keys."""
    return metric(client, 'task_audit_statement_duration_seconds_count{statement="list_keys"}')


async def keys_read_again(client: Client) -> None:
    """Wait until the service has begun and ended another read of the keys."""
    before = key_reads(client)
    await until(lambda: key_reads(client) >= before + 2)


async def test_a_key_is_random_and_only_its_digest_is_stored(pool: Pool, dsn: str) -> None:
    key, expires_at = await create_key(pool, "one", frozenset([Scope.READ]))
    other = await make(pool, Scope.READ)

    assert re.fullmatch(KEY_PREFIX + r"[\w-]{43}", key)
    assert key != other
    assert expires_at is None
    everything = str(execute(dsn, "SELECT * FROM access_keys"))
    assert key.removeprefix(KEY_PREFIX) not in everything


async def test_without_any_key_everyone_has_access(start: Start) -> None:
    client = await start()

    assert await status_of(client, "/query") == 200
    assert await status_of(client, "/query", "whatever") == 200


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (None, 'Bearer realm="task-audit"'),
        ("", 'Bearer error="invalid_token"'),
        ("Bearer", 'Bearer error="invalid_token"'),
        ("Bearer  ", 'Bearer error="invalid_token"'),
        ("Basic dTpw", 'Bearer error="invalid_token"'),
        ("Bearer taskaudit_wrong", 'Bearer error="invalid_token"'),
        ("Bearer " + "x" * 4000, 'Bearer error="invalid_token"'),
        ("Bearer \x80\xff", 'Bearer error="invalid_token"'),
    ],
)
async def test_without_a_valid_key_www_authenticate_says_what_to_send(
    start: Start, pool: Pool, given: str | None, told: str
) -> None:
    await make(pool, Scope.READ)
    client = await start()

    for method, path in (("GET", "/query"), ("GET", "/tasks/x"), ("POST", "/tasks")):
        headers = {} if given is None else {"Authorization": given}
        response = await client.request(method, API + path, headers=headers)
        problem = await response.json()

        assert response.status == 401
        assert response.headers["WWW-Authenticate"] == told
        assert problem["type"] == "urn:task-audit:problem:unauthenticated"
        assert given is None or len(given) < 10 or given[7:] not in str(problem)
    for path in ("/healthz", "/readyz", "/openapi.json", "/docs"):
        assert (await client.get(path)).status == 200


async def test_two_keys_in_one_request_are_refused(start: Start, pool: Pool) -> None:
    key = await make(pool, Scope.READ)
    client = await start()

    twice = [("Authorization", f"Bearer {key}"), ("Authorization", f"Bearer {key}")]
    response = await client.get(f"{API}/query", headers=twice)

    assert response.status == 401


@pytest.mark.parametrize("scope", list(Scope))
async def test_a_key_allows_only_its_scopes(start: Start, pool: Pool, scope: Scope) -> None:
    key = await make(pool, scope)
    client = await start()
    headers = bearing(key)
    one = task()
    answers = {
        ("GET", "/failures"): await client.get(f"{API}/failures", headers=headers),
        ("GET", "/query"): await client.get(f"{API}/query", headers=headers),
        ("GET", "/by-service/a"): await client.get(f"{API}/by-service/a", headers=headers),
        ("POST", "/tasks"): await client.post(f"{API}/tasks", json=one, headers=headers),
        ("GET", "/tasks/…"): await client.get(f"{API}/tasks/{one['task_id']}", headers=headers),
        ("PATCH", "/tasks/…"): await client.patch(
            f"{API}/tasks/{one['task_id']}", json={}, headers=headers
        ),
    }

    for (method, path), response in answers.items():
        needed = Scope.READ if method == "GET" else Scope.RECORD
        if needed is scope:
            assert response.status not in (401, 403), path
        else:
            problem = await response.json()
            assert response.status == 403, path
            assert f"needs the scope {needed}" in problem["detail"]
            assert response.headers["WWW-Authenticate"] == (
                f'Bearer error="insufficient_scope", scope="{needed}"'
            )


async def test_keys_are_created_and_revoked_while_the_service_runs(
    start: Start, pool: Pool
) -> None:
    client = await start()
    key, _ = await create_key(pool, "short-lived", frozenset([Scope.READ]))
    await soon(client, "/query", None, 401)
    assert await status_of(client, "/query", key) == 200

    first = await revoke_key(pool, "short-lived")

    await soon(client, "/query", key, 401)
    response = await client.get(f"{API}/query", headers=bearing(key))
    assert "short-lived is revoked" in (await response.json())["detail"]
    assert await revoke_key(pool, "short-lived") == first
    assert await status_of(client, "/query") == 401


async def test_an_expired_key_is_refused(start: Start, pool: Pool) -> None:
    soon_over = timedelta(seconds=1)
    key, _ = await create_key(pool, "soon-over", frozenset([Scope.READ]), None, soon_over)
    client = await start()
    await soon(client, "/query", key, 401)

    response = await client.get(f"{API}/query", headers=bearing(key))
    assert "soon-over has expired" in (await response.json())["detail"]


@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "BEARER  "])
async def test_the_scheme_may_be_spelt_in_any_case(start: Start, pool: Pool, scheme: str) -> None:
    key = await make(pool, Scope.READ)
    client = await start()

    statuses = [
        (await client.get(f"{API}/query", headers={"Authorization": scheme + sent})).status
        for sent in (key, KEY_PREFIX + "x" * 43)
    ]

    assert statuses == [200, 401]


async def test_keys_stay_valid_while_the_database_is_unreachable(
    start: Start, pool: Pool, dsn: str
) -> None:
    key = await make(pool, Scope.READ)
    client = await start()
    assert await status_of(client, "/query", key) == 200

    execute(dsn, "ALTER TABLE access_keys RENAME TO hidden")
    try:
        await keys_read_again(client)
        assert await status_of(client, "/query", key) == 200
        assert await status_of(client, "/query") == 401
    finally:
        execute(dsn, "ALTER TABLE hidden RENAME TO access_keys")


async def test_an_emptied_table_does_not_give_access_to_everyone(
    start: Start, pool: Pool, dsn: str
) -> None:
    await make(pool, Scope.READ)
    client = await start()
    execute(dsn, "DELETE FROM access_keys")
    await keys_read_again(client)

    assert await status_of(client, "/query") == 401


@pytest.mark.parametrize("name", ["", "a b", "ä", "x" * 101, "a\n", "<b>"])
async def test_an_invalid_name_is_refused(pool: Pool, name: str) -> None:
    with pytest.raises(Invalid, match="is not a valid name"):
        await create_key(pool, name, frozenset([Scope.READ]))


async def test_an_invalid_key_is_not_created(pool: Pool) -> None:
    await create_key(pool, "taken", frozenset([Scope.READ]))

    with pytest.raises(Invalid, match="already used by a key"):
        await create_key(pool, "taken", frozenset([Scope.READ]))
    with pytest.raises(Invalid, match="at least one scope"):
        await create_key(pool, "idle", frozenset())
    with pytest.raises(Invalid, match="already passed"):
        await create_key(pool, "late", frozenset([Scope.READ]), None, ago(seconds=1))
    with pytest.raises(Invalid, match="no key 'unknown'"):
        await revoke_key(pool, "unknown")
    assert ["taken"] == [key.identity.name for key in await list_keys(pool)]


async def test_a_key_expires_at_a_time_or_after_a_span(pool: Pool) -> None:
    until = datetime(2040, 1, 1, tzinfo=UTC)
    _, at = await create_key(pool, "until", frozenset([Scope.READ]), None, until)
    _, later = await create_key(pool, "for", frozenset([Scope.READ]), None, timedelta(days=90))

    assert at == until
    assert later is not None
    assert abs(later - datetime.now(UTC) - timedelta(days=90)) < timedelta(minutes=1)


# --- one project ----------------------------------------------------------------------------------


@pytest.fixture
async def history(client: Client) -> list[dict[str, Any]]:
    """Tasks of our project, of theirs and of none, recorded while there were no keys."""
    tasks = [
        task(
            status="failed" if n % 2 else "completed",
            project_id=[OURS, THEIRS, None][n % 3],
            created_at=ago(hours=n + 1),
        )
        for n in range(30)
    ]
    response = await client.post(f"{API}/tasks", json=tasks)
    assert response.status == 201
    return tasks


PAGES = [
    "/failures",
    "/failures?days=1",
    "/query",
    "/query?limit=3&offset=4",
    "/query?status=failed",
    "/by-service/payments?intent=deploy_service",
    f"/query?project_id={OURS}",
]


@pytest.mark.parametrize("page", PAGES)
async def test_a_key_of_a_project_sees_only_its_tasks(
    start: Start, pool: Pool, history: list[dict[str, Any]], page: str
) -> None:
    unbound = await make(pool, Scope.READ)
    ours = await make(pool, Scope.READ, project_id=OURS)
    theirs = await make(pool, Scope.READ, project_id=THEIRS)
    client = await start()
    separator = "&" if "?" in page else "?"
    narrowed = page if "project_id" in page else f"{page}{separator}project_id={OURS}"

    # In turns: no answer that is kept for one is sent to another.
    seen: dict[str, Any] = {}
    tags = {}
    for _ in range(2):
        for key, path in ((unbound, narrowed), (ours, page), (theirs, page), (unbound, page)):
            response = await client.get(API + path, headers=bearing(key))
            if key == theirs and "project_id" in path:
                assert response.status == 403
                continue
            assert response.status == 200
            seen[f"{key} {path}"] = await response.json()
            tags[f"{key} {path}"] = response.headers["ETag"]

    expected = seen[f"{unbound} {narrowed}"]
    mine = seen[f"{ours} {page}"]
    assert {**mine, "next_cursor": None} == {**expected, "next_cursor": None}
    assert 0 < mine["total"] <= 10
    known = {one["task_id"] for one in history if one["project_id"] == str(OURS)}
    assert {one["task_id"] for one in mine["tasks"]} <= known
    if "project_id" not in page:
        assert len({tags[f"{key} {page}"] for key in (ours, theirs, unbound)}) == 3
        tag = tags[f"{theirs} {page}"]
        response = await client.get(API + page, headers={**bearing(ours), "If-None-Match": tag})
        assert response.status == 200


async def test_pages_for_a_key_of_a_project_have_only_its_tasks(
    start: Start, pool: Pool, history: list[dict[str, Any]]
) -> None:
    unbound = await make(pool, Scope.READ)
    ours = await make(pool, Scope.READ, project_id=OURS)
    client = await start()
    found: list[str] = []
    cursor = ""
    while True:
        response = await client.get(f"{API}/query?limit=3{cursor}", headers=bearing(ours))
        page = await response.json()
        found += [one["task_id"] for one in page["tasks"]]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"

    assert found == [one["task_id"] for one in history if one["project_id"] == str(OURS)]
    # A cursor belongs to what it was made for.
    response = await client.get(f"{API}/query?limit=3", headers=bearing(unbound))
    cursor = (await response.json())["next_cursor"]
    assert await status_of(client, f"/query?limit=3&cursor={cursor}", ours) == 422


@pytest.mark.parametrize(
    "route",
    # A stream does not end; tests/web/test_feed_access.py reads it.
    [each for each in ROUTES if each.scope is Scope.READ and each.path != f"{API}/feed"],
    ids=lambda each: each.path,
)
async def test_every_route_that_reads_shows_a_key_only_the_tasks_of_its_project(
    start: Start, pool: Pool, history: list[dict[str, Any]], route: Route
) -> None:
    ours = await make(pool, Scope.READ, project_id=OURS)
    client = await start()
    foreign = {one["task_id"] for one in history if one["project_id"] != str(OURS)}

    for task_id in foreign:
        path = route.path.format(service_name="payments", task_id=task_id)
        path += "?facet=status" if path.endswith("/facets") else ""
        path += "?position=0&wait=0" if path.endswith("/changes") else ""
        response = await client.get(path, headers=bearing(ours))
        body = await response.text()

        assert response.status == (404 if "{task_id}" in route.path else 200)
        assert not [each for each in foreign - {task_id} if each in body]


async def test_statistics_for_a_key_of_a_project_count_only_its_tasks(
    start: Start, pool: Pool, history: list[dict[str, Any]]
) -> None:
    """Also the facet of projects, which otherwise ignores the filter by project."""
    ours = await make(pool, Scope.READ, project_id=OURS)
    client = await start()
    number = sum(one["project_id"] == str(OURS) for one in history)
    names = ("project_id", "status", "service", "intent", "created_by")
    facets = "&".join(f"facet={name}" for name in names)
    bodies = {}
    for path in ("histogram?", f"facets?{facets}", "durations?"):
        for given in ("", f"&project_id={OURS}"):
            response = await client.get(f"{API}/statistics/{path}{given}", headers=bearing(ours))
            assert response.status == 200, await response.text()
            bodies[path[:6]] = await response.json()
        theirs = f"{API}/statistics/{path}&project_id={THEIRS}"
        assert (await client.get(theirs, headers=bearing(ours))).status == 403

    assert 0 < number < len(history)
    assert number == bodies["histog"]["total"] == bodies["facets"]["total"]
    assert number == bodies["durati"]["tasks"] + bodies["durati"]["unfinished"]
    found = bodies["facets"]["facets"]
    assert [{"value": str(OURS), "total": number}] == found["project_id"]["values"]
    for facet in ("status", "intent", "created_by"):
        assert number == sum(each["total"] for each in found[facet]["values"])


async def test_a_task_of_another_project_is_not_found(
    start: Start, pool: Pool, history: list[dict[str, Any]]
) -> None:
    ours = await make(pool, Scope.READ, Scope.RECORD, project_id=OURS)
    client = await start()
    mine, foreign, of_none = history[0], history[1], history[2]

    for path, body in (("GET", None), ("PATCH", {"status": "failed"})):
        answers = []
        for task_id in (foreign["task_id"], of_none["task_id"], str(uuid.uuid4())):
            response = await client.request(
                path, f"{API}/tasks/{task_id}", json=body, headers=bearing(ours)
            )
            problem = await response.json()
            answers.append(
                (response.status, problem["detail"].replace(task_id, "…"), problem["type"])
            )
        assert len(set(answers)) == 1
        assert answers[0][0] == 404
    assert await status_of(client, f"/tasks/{mine['task_id']}", ours) == 200


@pytest.mark.parametrize("as_lines", [False, True])
async def test_a_key_of_a_project_records_only_its_tasks(
    start: Start, pool: Pool, dsn: str, *, as_lines: bool
) -> None:
    ours = await make(pool, Scope.RECORD, project_id=OURS)
    client = await start()

    async def send(*tasks: dict[str, Any]) -> Any:
        kind = "application/x-ndjson" if as_lines else "application/json"
        body = (
            "\n".join(json.dumps(one) for one in tasks)
            if as_lines
            else json.dumps(list(tasks) if len(tasks) > 1 else tasks[0])
        )
        return await client.post(
            f"{API}/tasks", data=body, headers={**bearing(ours), "Content-Type": kind}
        )

    good = task(project_id=OURS)
    for foreign in (task(), task(project_id=THEIRS), task(project_id=None)):
        for tasks in ([foreign], [good, foreign]):
            response = await send(*tasks)
            problem = await response.json()

            assert response.status == 403
            place = f"line {len(tasks)}: " if as_lines else "1." if len(tasks) > 1 else ""
            assert [f"{place}project_id"] == [error["field"] for error in problem["errors"]]
    assert execute(dsn, "SELECT count(*) FROM tasks") == [(0,)]
    assert (await send(good)).status == 201
    assert (await send(good)).status == 200
