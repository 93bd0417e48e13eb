"""What a client reads contains what it has written."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from audit.client import Client
from tests.client.conftest import Connect
from tests.client.proxy import ON, FaultProxy, Refusal
from tests.conftest import task

AT_LEAST = "audit-position-at-least"
#: What a service says that does not have a position.
UNKNOWN = Refusal(
    409,
    {"Content-Type": "application/problem+json"},
    b'{"type": "urn:task-audit:problem:unknown-position", "detail": "a failover has lost it"}',
)
#: Makes a proxy with a plan before the service.
Faults = Callable[..., FaultProxy]


@pytest.fixture
def faults(url: str) -> Iterator[Faults]:
    with ExitStack() as stack:
        yield lambda *plan: stack.enter_context(FaultProxy(url, *plan))


def sent_with(proxy: FaultProxy) -> list[str | None]:
    """The positions that each read was sent with."""
    return [
        {name.lower(): value for name, value in seen.headers.items()}.get(AT_LEAST)
        for seen in proxy.seen
        if seen.method == "GET"
    ]


def test_a_read_is_sent_with_the_position_of_the_last_write(
    connect: Connect, faults: Faults
) -> None:
    proxy = faults()
    client = connect(proxy.url)

    client.whoami()
    task_id = client.record(task(status="pending"))
    client.task(task_id)
    client.task(task_id)
    client.update(task_id, status="executing")
    client.query().first()

    none, recorded, again, changed = sent_with(proxy)
    assert none is None
    assert recorded is not None
    assert changed not in {None, recorded}
    assert recorded == again
    assert "," not in f"{recorded}{changed}"


def test_a_client_can_read_without_positions(connect: Connect, faults: Faults) -> None:
    proxy = faults()
    client = connect(proxy.url, read_your_writes=False)

    client.task(client.record(task()))

    assert sent_with(proxy) == [None]


def test_a_position_that_a_failover_has_lost_is_forgotten(connect: Connect, faults: Faults) -> None:
    proxy = faults(ON, UNKNOWN)
    client = connect(proxy.url)

    task_id = client.record(task())
    assert client.task(task_id).task_id == task_id
    client.task(task_id)

    refused, *others = sent_with(proxy)
    assert refused
    assert others == [None, None]


def test_a_read_is_sent_with_the_positions_of_writes_at_the_same_time(faults: Faults) -> None:
    proxy = faults()
    with Client(proxy.url) as client:
        start = threading.Barrier(4)

        def write() -> None:
            start.wait()
            for _ in range(5):
                client.record(task())

        threads = [threading.Thread(target=write) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        client.whoami()
        client.record(task())
        client.whoami()

    several, one = sent_with(proxy)
    assert several is not None
    assert one is not None
    assert 1 <= len(several.split(",")) <= 4
    assert "," not in one
