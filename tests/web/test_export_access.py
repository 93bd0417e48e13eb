"""Who may export what, and who may read what was recorded of it."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any

from audit.access.identity import Scope
from audit.access.keys import create_key
from tests.api import API, TASKS
from tests.conftest import Client, Start, task

if TYPE_CHECKING:
    from audit.postgres.pool import Pool

EXPORT, EXPORTS = f"{API}/export", f"{API}/exports"
OURS, THEIRS = uuid.UUID(int=1), uuid.UUID(int=2)


async def make(pool: Pool, name: str, *scopes: Scope, **other: Any) -> dict[str, str]:
    """Create a key; return the header that sends it."""
    key, _ = await create_key(pool, name, frozenset(scopes), **other)
    return {"Authorization": f"Bearer {key}"}


async def export(client: Client, headers: dict[str, str], query: str = "") -> tuple[str, list[str]]:
    """Return the id of an export, and the ids of its tasks."""
    response = await client.get(f"{EXPORT}?{query}", headers=headers)
    assert response.status == 200, await response.text()
    lines = (await response.read()).splitlines()
    return response.headers["X-Export-ID"], [json.loads(line)["task_id"] for line in lines]


async def status(client: Client, url: str, headers: dict[str, str]) -> int:
    return (await client.get(url, headers=headers)).status


async def test_a_key_of_a_project_exports_the_tasks_of_this_project(
    start: Start, pool: Pool
) -> None:
    recorder = await make(pool, "recorder", Scope.RECORD)
    ours = await make(pool, "ours", Scope.READ, project_id=OURS)
    everyone = await make(pool, "all", Scope.READ)
    client = await start()
    tasks = [task(project_id=project) for project in (OURS, THEIRS, None)]
    assert (await client.post(TASKS, json=tasks, headers=recorder)).status == 201

    export_id, ids = await export(client, ours)

    assert ids == [tasks[0]["task_id"]]
    manifest = await (await client.get(f"{EXPORTS}/{export_id}", headers=ours)).json()
    assert manifest["filter"] == {"project_id": str(OURS)}
    assert manifest["by"] == "ours"
    assert await status(client, f"{EXPORT}?project_id={THEIRS}", ours) == 403
    # A task of another project is not even known to exist.
    assert await status(client, f"{EXPORT}?after={tasks[1]['task_id']}", ours) == 422
    assert len((await export(client, everyone))[1]) == 3


async def test_a_manifest_is_for_its_key_and_for_administrators(start: Start, pool: Pool) -> None:
    ada, ben = await make(pool, "ada", Scope.READ), await make(pool, "ben", Scope.READ)
    admin = await make(pool, "admin", Scope.ADMIN)
    recorder = await make(pool, "recorder", Scope.RECORD)
    bound = await make(pool, "bound", Scope.READ, Scope.ADMIN, project_id=OURS)
    client = await start()
    made, _ = await export(client, ada)
    of_project, _ = await export(client, bound)

    expected = {"ada": 200, "ben": 404, "admin": 200, "bound": 404, "recorder": 404, "none": 401}
    keys = {
        "ada": ada,
        "ben": ben,
        "admin": admin,
        "bound": bound,
        "recorder": recorder,
        "none": {},
    }
    assert expected == {
        name: await status(client, f"{EXPORTS}/{made}", key) for name, key in keys.items()
    }
    assert {**expected, "ada": 403, "ben": 403, "bound": 200, "recorder": 403} == {
        name: await status(client, EXPORTS, key) for name, key in keys.items()
    }
    for key, ids in ((admin, [of_project, made]), (bound, [of_project])):
        listed = await (await client.get(EXPORTS, headers=key)).json()
        assert [each["export_id"] for each in listed["exports"]] == ids
    assert {name: await status(client, EXPORT, keys[name]) for name in ("recorder", "none")} == {
        "recorder": 403,
        "none": 401,
    }


async def test_the_session_of_the_page_exports(start: Start, pool: Pool) -> None:
    key, _ = await create_key(pool, "ada", frozenset({Scope.READ}))
    client = await start()
    cookie = {"Cookie": f"task_audit_session={key}"}
    page = {**cookie, "Sec-Fetch-Site": "same-origin"}

    export_id, ids = await export(client, page)

    assert ids == []
    assert await status(client, f"{EXPORTS}/{export_id}", page) == 200
    assert await status(client, EXPORTS, page) == 403
    assert await status(client, EXPORT, {**cookie, "Sec-Fetch-Site": "cross-site"}) == 401
