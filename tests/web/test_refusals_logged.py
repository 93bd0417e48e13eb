"""Requests refused with 401 or 403 are logged with the address of the client."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from audit.access.identity import Scope
from audit.access.keys import create_key
from audit.addresses import client_address, networks_of
from audit.postgres.pool import open_pool
from audit.settings import Settings
from audit.telemetry import throttle
from audit.telemetry.request_log import RequestLog
from audit.web.app import create_app
from tests.commandline import audit
from tests.conftest import Client

QUERY = "/api/v1/audit/query"
TRUSTED = networks_of("10.0.0.0/8, 192.0.2.7, 2001:db8::/32")


@pytest.fixture
async def keys(dsn: str) -> dict[Scope, str]:
    """Create a key for each scope, so that the service requires one."""
    async with open_pool(Settings(pool_size=1), dsn) as pool:
        return {scope: (await create_key(pool, scope, frozenset([scope])))[0] for scope in Scope}


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Callable[[], list[dict[str, Any]]]:
    """Return a function that returns the logged requests."""
    caplog.set_level(logging.INFO, "audit.requests")

    def of_requests() -> list[dict[str, Any]]:
        return [one.__dict__["entry"] for one in caplog.records if "entry" in one.__dict__]

    return of_requests


async def test_a_refusal_is_logged_with_its_reason_and_without_the_key(
    dsn: str,
    keys: dict[Scope, str],
    aiohttp_client: Callable[..., Awaitable[Client]],
    logged: Callable[[], list[dict[str, Any]]],
) -> None:
    client = await aiohttp_client(create_app(Settings(pool_size=1), dsn))
    unknown = "taskaudit_" + "x" * 43
    for value in (f"Bearer {unknown}", f"Bearer {keys[Scope.RECORD]}"):
        await client.get(QUERY, headers={"Authorization": value, "X-Request-ID": "a-1"})

    first, second = logged()
    assert (401, "127.0.0.1", "a-1", QUERY, None) == (
        first["status"], first["client"], first["request_id"], first["route"], first["key_name"],
    )  # fmt: skip
    assert first["reason"] == "the key is unknown"
    assert (403, "record") == (second["status"], second["key_name"])
    assert second["reason"] == "this needs the scope read; record has record"
    lines = json.dumps(logged())
    assert unknown not in lines
    assert keys[Scope.RECORD] not in lines


async def test_refusals_of_one_client_are_logged_once_a_minute(
    dsn: str,
    keys: dict[Scope, str],
    aiohttp_client: Callable[..., Awaitable[Client]],
    logged: Callable[[], list[dict[str, Any]]],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert keys
    client = await aiohttp_client(create_app(Settings(pool_size=1), dsn))
    await asyncio.gather(*(client.get(QUERY) for _ in range(200)))
    assert len(logged()) == 1

    monkeypatch.setattr(throttle, "_SUMMARY_SECONDS", 0)
    await client.get(QUERY)
    assert len(logged()) == 2
    assert caplog.records[-1].__dict__["left_out"] == 199


def test_refusals_of_many_clients_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1000.5)
    log = RequestLog(0)

    assert sum(log.wants(401, f"2001:db8::{n:x}") for n in range(5000)) == 20


async def test_a_trusted_proxy_names_the_client(
    dsn: str,
    keys: dict[Scope, str],
    aiohttp_client: Callable[..., Awaitable[Client]],
    logged: Callable[[], list[dict[str, Any]]],
) -> None:
    assert keys
    forwarded = {"X-Forwarded-For": "203.0.113.9, 198.51.100.4"}
    for settings in (Settings(pool_size=1), Settings(pool_size=1, trusted_proxy="127.0.0.0/8")):
        client = await aiohttp_client(create_app(settings, dsn))
        await client.get(QUERY, headers=forwarded)

    assert ["127.0.0.1", "198.51.100.4"] == [line["client"] for line in logged()]


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("203.0.113.1", ["198.51.100.4"], "203.0.113.1"),
        ("10.1.2.3", [], "10.1.2.3"),
        ("10.1.2.3", ["198.51.100.4"], "198.51.100.4"),
        ("10.1.2.3", ["6.6.6.6, 198.51.100.4, 10.9.9.9"], "198.51.100.4"),
        ("10.1.2.3", ["6.6.6.6", "198.51.100.4,192.0.2.7"], "198.51.100.4"),
        ("10.1.2.3", ["10.0.0.1, 10.0.0.2"], "10.0.0.1"),
        ("10.1.2.3", ["198.51.100.4:4711"], "198.51.100.4"),
        ("10.1.2.3", ["2001:db9::1"], "2001:db9::1"),
        ("10.1.2.3", ["[2001:db9::1]:4711"], "2001:db9::1"),
        ("10.1.2.3", ["::ffff:198.51.100.4"], "198.51.100.4"),
        ("::ffff:10.1.2.3", ["198.51.100.4"], "198.51.100.4"),
        ("2001:db8::5", ["198.51.100.4"], "198.51.100.4"),
        # What is not an address ends the chain.
        ("10.1.2.3", ["198.51.100.4, unknown"], "10.1.2.3"),
        ("10.1.2.3", ["198.51.100.4, unknown, 10.0.0.2"], "10.0.0.2"),
        ("10.1.2.3", [""], "10.1.2.3"),
        ("10.1.2.3", [",,,"], "10.1.2.3"),
        ("10.1.2.3", ["\x00\n', --"], "10.1.2.3"),
        ("10.1.2.3", ["[::1"], "::1"),
        ("10.1.2.3", ["1.2.3.4.5"], "10.1.2.3"),
        (None, ["198.51.100.4"], None),
    ],
)
def test_the_client_is_the_last_address_that_is_not_a_trusted_proxy(
    peer: str | None, forwarded: list[str], client: str | None
) -> None:
    assert client == client_address(peer, forwarded, TRUSTED)


@pytest.mark.parametrize("value", ["10.0.0.0/33", "proxy.example.com", "10.0.0.1/8", "*"])
def test_an_invalid_trusted_proxy_is_refused(value: str, tmp_path: Path) -> None:
    code, _, message = audit("serve", "--trusted-proxy", value, AUDIT_DATA_DIR=str(tmp_path))

    assert code == 2
    assert "--trusted-proxy or AUDIT_TRUSTED_PROXY: must be addresses or networks" in message
    assert not list(tmp_path.iterdir())
