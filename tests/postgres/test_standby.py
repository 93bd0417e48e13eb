"""The service on a hot standby."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator

import pytest
from aiohttp import web

from audit.settings import Settings
from audit.web.app import create_app
from tests.conftest import Client, task
from tests.replicas import Replicas, replicated

API = "/api/v1/audit"
Clients = Callable[[web.Application], Awaitable[Client]]


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicas]:
    with replicated(tmp_path_factory.mktemp("replicas")) as pair:
        yield pair


async def test_a_standby_answers_the_three_main_questions(
    replicas: Replicas, aiohttp_client: Clients
) -> None:
    primary, standby = [
        await aiohttp_client(create_app(Settings(pool_size=3), one.dsn))
        for one in (replicas.primary, replicas.standby)
    ]
    made = [task(), task(status="failed"), task(services_touched=["search"])]
    assert 201 == (await primary.post(f"{API}/tasks", json=made)).status
    replicas.wait_for_standby()
    for question in (
        "failures?service=payments",
        "by-service/payments?status=completed",
        "query?status=completed&intent=deploy_service",
    ):
        there, here = [await one.get(f"{API}/{question}") for one in (primary, standby)]
        assert (question, 200, 200) == (question, there.status, here.status)
        assert await there.json() == await here.json()
