"""The client of the commands: it waits longer than a program would, and its errors name the URL."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

from pydantic import SecretStr

from audit.client.aio import AsyncClient
from audit.client.sync import Client
from audit.client.wire import Retries
from audit.errors import BodyTooSlow, TimedOut, TooManyRequests, Unavailable
from audit.profiles import ServiceAddress

#: Counting the tasks of an export takes longer than other requests.
_EXPORT_RETRIES: Final = Retries(tries=5, timeout=300)


@asynccontextmanager
async def service_at(
    url: str, key: str | None, retries: Retries, ca_file: Path | None = None
) -> AsyncIterator[AsyncClient]:
    """Open a client of the service at a URL. The key is sent without TLS too, as the user says.

    `ca_file` has certificates to trust besides those of the system.
    """
    address = ServiceAddress(url, SecretStr(key) if key else None, ca_file)
    async with AsyncClient.at(address, retries, insecure=True) as client:
        yield client


@contextmanager
def export_client_at(url: str, key: str | None, ca_file: Path | None = None) -> Iterator[Client]:
    """Open a client for an export, which waits until there is a place for it."""
    address = ServiceAddress(url, SecretStr(key) if key else None, ca_file)
    with Client.at(address, _EXPORT_RETRIES, insecure=True) as client:
        yield client


@contextmanager
def naming(url: str) -> Iterator[None]:
    """Turn the problems of a service that could be asked again into one that names its URL."""
    try:
        yield
    except (Unavailable, TimedOut, TooManyRequests, BodyTooSlow) as problem:
        is_named = url.rstrip("/") in problem.detail
        detail = problem.detail if is_named else f"{url} does not answer: {problem.detail}"
        raise Unavailable(detail) from None
