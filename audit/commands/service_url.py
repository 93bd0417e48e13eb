"""Sends requests to a running service, if necessary through an HTTP proxy."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Final
from urllib.request import getproxies, proxy_bypass

import aiohttp
from pydantic_core import from_json
from yarl import URL

from audit.errors import Forbidden, Invalid, Problem, Unauthenticated, Unavailable

_API: Final = "/api/v1/audit"
_REQUEST_SECONDS: Final = 120
_LONGEST_WAIT_SECONDS: Final = 30
_RETRIED: Final = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS})
#: What a status means, whatever the body says.
_REFUSALS: Final[dict[int, type[Problem]]] = {
    HTTPStatus.UNAUTHORIZED: Unauthenticated,
    HTTPStatus.FORBIDDEN: Forbidden,
}
#: The URL is not that of this service.
_WRONG_SERVICE: Final = frozenset(
    {
        HTTPStatus.NOT_FOUND,
        HTTPStatus.METHOD_NOT_ALLOWED,
        HTTPStatus.PROXY_AUTHENTICATION_REQUIRED,
    }
)
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
#: Only these allow a client to repeat a POST at the new URL (RFC 9110, 15.4).
_SAME_REQUEST: Final = frozenset({307, 308})
_MAX_REDIRECTS: Final = 5
#: Failures of a connection that a retry would repeat.
_NOT_RETRIED: Final = (
    aiohttp.ClientConnectorCertificateError,
    aiohttp.ClientConnectorSSLError,
    aiohttp.InvalidURL,
)


class Failed(Exception):
    """A request failed, but a retry may succeed. `retry_after_seconds` is 0 if it is not known."""

    def __init__(self, problem: str, retry_after_seconds: int = 0) -> None:
        super().__init__(problem)
        self.retry_after_seconds = retry_after_seconds

    def wait_seconds(self, retries: int) -> int:
        """Return how long to wait before the next retry, after `retries` retries.

        The service may say how long. Otherwise the time doubles. It is never longer than 30 s.
        """
        return min(self.retry_after_seconds or 2**retries, _LONGEST_WAIT_SECONDS)


@dataclass(frozen=True, slots=True)
class Response:
    """The response to a request."""

    status: int
    retry_after: str
    body: bytes

    def require_success(self, url: URL) -> None:
        """Raise what an error of the service means.

        Raises:
            Problem: the service refuses the request; the class is the one that it names.
            Unavailable: the URL is not that of the service.
            Failed: a retry may succeed.
        """
        if HTTPStatus.OK <= self.status < HTTPStatus.MULTIPLE_CHOICES:
            return
        problem = self._member("detail") or f"status {self.status}"
        if self.status >= HTTPStatus.INTERNAL_SERVER_ERROR or self.status in _RETRIED:
            raise Failed(problem, int(self.retry_after) if self.retry_after.isdecimal() else 0)
        named = (self._member("type") or "").removeprefix("urn:task-audit:problem:")
        refusals = {kind.name: kind for kind in Problem.__subclasses__()}
        if named in refusals:
            raise refusals[named](problem)
        if self.status in _WRONG_SERVICE:
            raise Unavailable(f"{url} refuses the request: {problem}")
        raise _REFUSALS.get(self.status, Invalid)(problem)

    def _member(self, name: str) -> str | None:
        """Return a member of the problem in the body; None if there is none."""
        try:
            return str(from_json(self.body)[name])
        except (ValueError, TypeError, KeyError):
            return None


class Service:
    """Sends requests to a running service. Only the origin of its URL gets the key."""

    def __init__(self, session: aiohttp.ClientSession, url: URL, key: str | None) -> None:
        self._session = session
        self._key = key
        self.url = url

    async def send(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        query: Sequence[tuple[str, str]] = (),
    ) -> Response:
        """Send a request, follow redirects, and return the response, whatever its status.

        `path` begins below `/api/v1/audit`.

        Raises:
            Unavailable: the service cannot be reached, or redirects to where no request may go.
            Failed: a retry may succeed.
        """
        try:
            return await self._send(method, path, body, query)
        except _NOT_RETRIED as failure:
            raise Unavailable(f"{self.url} cannot be reached: {_text_of(failure)}") from None
        except aiohttp.ClientHttpProxyError as refused:
            problem = f"the proxy answers {refused.status} {refused.message}"
            if refused.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                raise Failed(problem) from None
            raise Unavailable(f"{self.url} cannot be reached: {problem}") from None
        except (aiohttp.ClientError, TimeoutError) as failure:
            raise Failed(_text_of(failure)) from None

    async def _send(
        self, method: str, path: str, body: bytes | None, query: Sequence[tuple[str, str]]
    ) -> Response:
        url = URL(f"{self.url}{_API}{path}").with_query(query)
        for _ in range(_MAX_REDIRECTS + 1):
            headers = {} if body is None else {"Content-Type": "application/json"}
            if self._key and url.origin() == self.url.origin():
                headers["Authorization"] = f"Bearer {self._key}"
            sending = self._session.request(
                method, url, data=body, headers=headers, proxy=_proxy_of(url), allow_redirects=False
            )
            async with sending as response:
                answer = await response.read()
            if response.status not in _REDIRECTS:
                retry_after = response.headers.get("Retry-After", "")
                return Response(response.status, retry_after, answer)
            url = _next_url(url, response)
        raise Unavailable(f"{self.url} redirects more than {_MAX_REDIRECTS} times")


def _next_url(url: URL, response: aiohttp.ClientResponse) -> URL:
    """Return the target of a redirect, if the request may be repeated there."""
    location = response.headers.get("Location", "")
    try:
        target = url.join(URL(location))
    except ValueError:
        raise Unavailable(f"{url} redirects to an invalid URL ({response.status})") from None
    shown = target.with_user(None) if target.host else target
    if response.method == "POST" and response.status not in _SAME_REQUEST:
        raise Unavailable(
            f"{url} redirects to {shown} ({response.status}), which a POST does not follow:"
            " give --url the address of the service itself"
        )
    if target.scheme not in {"http", "https"} or not target.host:
        raise Unavailable(f"{url} redirects to {shown} ({response.status}), which is not HTTP")
    if url.scheme == "https" and target.scheme == "http":
        raise Unavailable(f"{url} redirects to {shown} ({response.status}), without TLS")
    return shown


def _proxy_of(url: URL) -> URL | None:
    """Return the proxy for a URL according to HTTP_PROXY, HTTPS_PROXY and NO_PROXY."""
    proxy = getproxies().get(url.scheme)
    hosts = (str(url.host), f"{url.host}:{url.port}")
    if not proxy or any(map(proxy_bypass, hosts)):
        return None
    variable = f"{url.scheme.upper()}_PROXY"
    try:
        address = URL(proxy if "://" in proxy else f"http://{proxy}")
        is_usable = address.scheme in {"http", "https"} and bool(address.host)
    except ValueError:
        is_usable = False
    if not is_usable:
        raise Unavailable(f"{variable} must look like http://proxy.example.com:3128")
    return address


def _text_of(failure: Exception) -> str:
    return str(failure) or type(failure).__name__


@asynccontextmanager
async def service_at(
    url: str, key: str | None = None, ca_file: Path | None = None
) -> AsyncIterator[Service]:
    """Open an HTTP client for the service at a URL.

    `ca_file` has certificates to trust besides those of the system.
    """
    trusted: ssl.SSLContext | bool = True
    if ca_file is not None:
        trusted = ssl.create_default_context()
        trusted.load_verify_locations(ca_file)
    timeout = aiohttp.ClientTimeout(total=_REQUEST_SECONDS)
    connector = aiohttp.TCPConnector(ssl=trusted)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        yield Service(session, URL(url.rstrip("/")), key)
