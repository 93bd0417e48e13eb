"""Requests whose values must show up in no log, trace or metric."""

from __future__ import annotations

from urllib.parse import quote

import aiohttp

from tests.conftest import task
from tests.processes import API

WRONG_TOKEN = "taskaudit_canary-token"  # noqa: S105 - of nobody


async def send_canaries(url: str, key: str) -> None:
    """Send them where they are taken, where they are refused, and where the database fails."""
    word = quote("canary'; SELECT 1 --")
    known = task(
        request_text="canary-text",
        created_by="canary-person",
        services_touched=["canary-service"],
        status="pending",
        outcome={"action_type": "canary-intent", "canary-member": "canary-value"},
    )
    changed = {**known, "request_text": "canary-other"}
    paths = (
        f"/by-service/{word}",
        f"/query?created_by={word}&intent=canary-intent&service=canary-service",
        f"/query?{word}={word}",
        f"/query?status={word}",
        f"/query?cursor={word}",
        f"/failures?service=canary-service&service={word}",
        f"/tasks/{word}",
        f"/{word}",
    )
    bodies: tuple[object, ...] = (
        known, changed, {**known, "status": "canary"}, {"canary": 1}, ["canary"], "canary",
    )  # fmt: skip
    headers = {"Authorization": f"Bearer {key}", "X-Canary": "canary", "User-Agent": "canary"}
    async with aiohttp.ClientSession(headers=headers) as session:
        for path in paths:
            for etag in ({}, {"If-None-Match": '"canary"'}):
                await (await session.get(f"{url}{API}{path}", headers=etag)).read()
        for body in bodies:
            await (await session.post(f"{url}{API}/tasks", json=body)).read()
        change = {"error_message": "canary-error", "status": "failed"}
        path = f"{API}/tasks/{known['task_id']}"
        await (await session.patch(f"{url}{path}", json=change)).read()
        for token in (WRONG_TOKEN, "canary.canary.canary", "canary"):
            refused = {"Authorization": f"Bearer {token}"}
            answer = await session.get(f"{url}{API}/query", headers=refused)
            assert "canary" not in await answer.text()
