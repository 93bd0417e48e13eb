"""No parameter, path or member makes the service fail."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import quote

import pytest

from tests.api import API, TASKS
from tests.conftest import Client, task
from tests.web.errors.conftest import Request, asked, send

pytestmark = pytest.mark.asyncio(loop_scope="module")


NASTY: Final = [
    "", " ", "0", "-1", "1e9", "9" * 19, "9" * 400, "NaN", "null", "true", "[]", "{}", "[{}]", "'",
    '"', "\\", "\\u0000", "\n", "\r\n", "\x1b[31m", "\x7f", "%", "%25", "%s", "{0}", "${7*7}", ".",
    "..", "../..", "/", "a/b", "//", "?", "#", "&", ";", "=", "+", "*", "$1", "$$", "--", "/*",
    "'; DROP TABLE x", "' OR 1=1 --", "{a,b}", "(1,2)", "a" * 255, "a" * 256, "ß" * 300, "🚀", "٣",
    "e\u0301", "\u202e", "\ufeff", "\ufffe", "\U0010ffff", "İ", "2026-01-01T00:00:00Z", "infinity",
    "0001-01-01T00:00:00Z", "7d9f1c9e-0c3f-4d0e-9a63-6b6f0b7c2d11", '{"a": 1e999}', "failed",
    '{"": {"": [[[[]]]]}}', "pending",
]  # fmt: skip
PARAMETERS: Final = [
    "limit", "offset", "days", "since", "until", "service", "intent", "created_by", "project_id",
    "outcome", "cursor", "service_name", "status", "task_id", "Limit", "limit ", "status.x",
    "status[]", "sort", "_",
]  # fmt: skip
MEMBERS: Final[list[Any]] = [
    None, True, 0, -1, 1.5, 10**30, 1e308, "", " ", "a", "ß" * 300, "🚀" * 66_000, "\u202e",
    "{}", "[]", "infinity", "2026-01-01T00:00:00Z", "0001-01-01T00:00:00Z", [], [[]], [None], [""],
    ["a", "a"], [["a"], ["b"]], ["a"] * 101, {}, {"": ""}, {"action_type": 1}, {"action_type": {}},
    {"action_type": "a" * 10_000}, {"action_type": ""}, {"a": "b" * 100_000}, {"k" * 10_000: None},
    {"a": [[[[[[[[{}]]]]]]]]}, "7d9f1c9e-0c3f-4d0e-9a63-6b6f0b7c2d11", "pending", "failed",
]  # fmt: skip


async def failures(client: Client, requests: list[Request]) -> list[str]:
    """Return the requests that get a status of 500 or higher."""
    return [
        f"{method} {path} {str(request)[:200]}"
        for method, path, request in requests
        if (await send(client, method, path, **request)).status >= 500
    ]


@pytest.mark.parametrize("route", ["/query", "/by-service/a"])
async def test_no_parameter_causes_a_500(client: Client, route: str) -> None:
    requests: list[Request] = [
        ("GET", f"{API}{route}?{asked(**{name: value})}", {})
        for name in PARAMETERS
        for value in NASTY
    ]

    assert [] == await failures(client, requests)


async def test_no_path_causes_a_500(client: Client) -> None:
    requests: list[Request] = [
        (method, f"{API}/{route}/{quote(value, safe=safe)}", {})
        for method, route in (("GET", "by-service"), ("GET", "tasks"), ("PATCH", "tasks"))
        for value in NASTY
        for safe in ("", "/.;=+&$'()*!,@:~")
    ]

    assert [] == await failures(client, requests)


async def test_no_member_causes_a_500(client: Client) -> None:
    requests: list[Request] = [
        ("POST", TASKS, {"json": task(**{name: value})})
        for name in ("task_id", "project_id", "request_text", "created_by", "status", "created_at",
                     "completed_at", "services_touched", "outcome", "suggestions", "error_message",
                     "actual_resources", "intent", "", "a.b", "0")
        for value in MEMBERS
    ]  # fmt: skip
    requests += [("POST", TASKS, {"json": value}) for value in MEMBERS]

    assert [] == await failures(client, requests)


async def test_no_change_causes_a_500(client: Client) -> None:
    waiting = task(status="pending")
    await client.post(TASKS, json=waiting)
    requests: list[Request] = [
        ("PATCH", f"{TASKS}/{waiting['task_id']}", {"json": {name: value}})
        for name in ("approved_at", "services_touched", "outcome", "suggestions", "error_message",
                     "actual_resources", "intent", "task_id", "", "status")
        for value in MEMBERS
    ]  # fmt: skip

    assert [] == await failures(client, requests)
