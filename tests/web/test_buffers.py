"""The memory for request bodies and unread responses is limited."""

from __future__ import annotations

import asyncio
import socket
from contextlib import ExitStack
from typing import Any
from unittest.mock import Mock

import pytest
from aiohttp.test_utils import TestClient

from audit.errors import Unavailable
from audit.settings import Settings
from audit.web.app import create_app
from audit.web.buffers import BodyMemory, Unread
from tests.conftest import Client, task
from tests.faults.load import API, running
from tests.inprocess import Server

MIB = 1024 * 1024


def test_small_bodies_always_fit_and_large_ones_share_the_limit() -> None:
    memory = BodyMemory(MIB)
    with memory.request() as first, memory.request() as second, memory.request() as small:
        first(MIB)
        with pytest.raises(Unavailable, match="max_bodies_bytes"):
            second(MIB)
        small(60_000)
    with memory.request() as later:
        later(MIB)


def test_the_oldest_reader_is_cut_off_and_a_shared_body_counts_once() -> None:
    transports = [Mock(asyncio.Transport) for _ in range(6)]
    unread = Unread(2 * MIB)
    shared, body, other = bytes(MIB), bytes(MIB), bytes(MIB)
    with ExitStack() as stack:
        for transport in transports[:4]:
            stack.enter_context(unread.response(transport, shared))
        stack.enter_context(unread.response(transports[4], body))
        assert not any(transport.abort.called for transport in transports)
        stack.enter_context(unread.response(transports[5], other))
        # All four held the same bytes, so that all of them had to go.
        assert [True] * 4 + [False] * 2 == [one.abort.called for one in transports]
    with unread.response(transports[0], bytes(2 * MIB)):
        assert not transports[5].abort.called


async def test_bodies_over_the_limit_are_refused_and_the_setting_is_named(dsn: str) -> None:
    settings = Settings(pool_size=4, max_bodies_bytes=MIB)
    head = (
        f"POST {API}/tasks HTTP/1.1\r\nHost: a\r\nContent-Length: {2 * MIB}\r\n"
        "Content-Type: application/json\r\n\r\n["
    )
    async with TestClient(Server(create_app(settings, dsn))) as client:
        assert client.port
        _, writer = await asyncio.open_connection("127.0.0.1", client.port)
        writer.write(head.encode() + b" " * MIB)
        await writer.drain()
        large = [task(request_text="a" * 50_000) for _ in range(4)]
        async with asyncio.timeout(60):
            status, text = await post(client, large)
            while status != 503:  # the service has not read the other body yet
                status, text = await post(client, large)
        assert "max_bodies_bytes" in text
        async with client.post(f"{API}/tasks", json=task()) as answer:
            assert answer.status == 201
        writer.close()
        async with asyncio.timeout(60):
            while status not in {200, 201}:
                status, _ = await post(client, large)


async def post(client: Client, tasks: list[dict[str, Any]]) -> tuple[int, str]:
    async with client.post(f"{API}/tasks", json=tasks) as answer:
        return answer.status, await answer.text()


async def test_unread_responses_are_bounded(dsn: str) -> None:
    """Pages far larger than what the kernel takes, of which clients read the first byte only."""
    texts = [task(request_text="a" * 50_000) for _ in range(200)]

    def crowd(url: str, paths: list[str]) -> list[bool]:
        """Return of each client whether it still gets its page whole."""
        host, port = url.removeprefix("http://").split(":")
        whole = []
        with ExitStack() as stack:
            clients = []
            for path in paths:
                client = stack.enter_context(socket.socket())
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                client.settimeout(20)
                client.connect((host, int(port)))
                client.sendall(f"GET {API}{path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
                client.recv(1)
                clients.append(client)
            for client in clients:
                read = 0
                try:
                    while read < 10_000_000 and (data := client.recv(1 << 20)):
                        read += len(data)
                except ConnectionResetError:
                    pass
                whole.append(read >= 10_000_000)
        return whole

    options = ("--dsn", dsn, "--workers", "1", "--max-unread-bytes", str(42 * MIB))
    async with running(*options) as (_, url):
        async with TestClient(Server(create_app(Settings(pool_size=2), dsn))) as other:
            for i in range(0, 200, 10):
                answer = await other.post(f"{API}/tasks", json=texts[i : i + 10])
                assert answer.status == 201
        different = [f"/query?limit={limit}" for limit in range(200, 210)]
        cut = await asyncio.to_thread(crowd, url, different)
        same = await asyncio.to_thread(crowd, url, ["/query?limit=200"] * 10)

    assert [False] * 6 + [True] * 4 == cut
    assert all(same)
