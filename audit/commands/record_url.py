"""Records tasks through a running service, if necessary through an HTTP proxy."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Final
from urllib.request import getproxies, proxy_bypass

import aiohttp
from pydantic_core import from_json
from yarl import URL

from audit.errors import Invalid, Unavailable
from audit.history.parsing import TaskBatch
from audit.history.recording import Recorded
from audit.history.task import RecordedBody

log = logging.getLogger("audit")

_ATTEMPTS: Final = 8
_MAX_WAIT_SECONDS: Final = 30
_REQUEST_SECONDS: Final = 120
_RETRIED: Final = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS})
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
#: Numbers stay text, because Python converts only a limited number of digits.
_decoder: Final = json.JSONDecoder(parse_int=str, parse_float=str)
_SEPARATORS: Final = re.compile(r"[ \t\r\n,]*")


class _TooLarge(Exception):
    """The service or a proxy refuses the size of the body."""


class _Failed(Exception):
    """A request failed, but a retry may succeed. `retry_after_seconds` is 0 if it is not known."""

    def __init__(self, problem: str, retry_after_seconds: int = 0) -> None:
        super().__init__(problem)
        self.retry_after_seconds = retry_after_seconds


class _Client:
    """Records through a running service, and retries while the service is unavailable.

    If a request is too large for the service or a proxy, its tasks are sent in two halves.
    """

    def __init__(self, session: aiohttp.ClientSession, url: str, key: str | None) -> None:
        self._session = session
        self._url = URL(url.rstrip("/") + "/api/v1/audit/tasks")
        self._key = key
        #: Size of the smallest body that was too large.
        self._too_large: float = float("inf")

    async def send(self, batch: TaskBatch) -> Recorded:
        """Record the tasks with one request, or with several if that is too large."""
        return await self._send(batch.text.encode(), batch.labels)

    async def _send(self, body: bytes, labels: Sequence[str]) -> Recorded:
        if len(body) < self._too_large or len(labels) == 1:
            try:
                return await self._send_whole(body)
            except _TooLarge:
                if len(labels) == 1:
                    label = labels[0] if labels[0].endswith(": ") else ""
                    raise Invalid(
                        f"{label}the task takes a request of {len(body):,} bytes, which is too"
                        f" large for {self._url} or a proxy before it (413)"
                    ) from None
                self._too_large = min(self._too_large, len(body))
        tasks = list(_elements(body.decode()))
        middle = len(tasks) // 2
        first = await self._send(_array(tasks[:middle]), labels[:middle])
        second = await self._send(_array(tasks[middle:]), labels[middle:])
        return Recorded(
            first.recorded + second.recorded,
            first.duplicates + second.duplicates,
            [*first.ids_as_text, *second.ids_as_text],
        )

    async def _send_whole(self, body: bytes) -> Recorded:
        """Send one request, and retry it.

        Raises:
            _TooLarge: the response is 413.
            Invalid: the service refuses the tasks.
            Unavailable: the service does not answer, or the URL is not that of the service.
        """
        for attempt in range(1, _ATTEMPTS):
            try:
                return await self._attempt(body)
            except _Failed as failed:
                wait_seconds = failed.retry_after_seconds or 2 ** (attempt - 1)
                wait_seconds = min(wait_seconds, _MAX_WAIT_SECONDS)
                log.warning("%s: %s; trying again in %d s", self._url, failed, wait_seconds)
            await asyncio.sleep(wait_seconds)
        try:
            return await self._attempt(body)
        except _Failed as failed:
            raise Unavailable(f"{self._url} does not answer: {failed}") from None

    async def _attempt(self, body: bytes) -> Recorded:
        try:
            status, headers, answer = await self._post(body)
        except _NOT_RETRIED as failure:
            raise Unavailable(f"{self._url} cannot be reached: {_text_of(failure)}") from None
        except aiohttp.ClientHttpProxyError as refused:
            problem = f"the proxy answers {refused.status} {refused.message}"
            if refused.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                raise _Failed(problem) from None
            raise Unavailable(f"{self._url} cannot be reached: {problem}") from None
        except (aiohttp.ClientError, TimeoutError) as failure:
            raise _Failed(_text_of(failure)) from None
        if HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
            return self._recorded(answer)
        if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            raise _TooLarge
        problem = _detail(status, answer)
        if status in _WRONG_SERVICE:
            raise Unavailable(f"{self._url} refuses the request: {problem}")
        if status < HTTPStatus.INTERNAL_SERVER_ERROR and status not in _RETRIED:
            raise Invalid(problem)
        retry_after = headers.get("Retry-After", "")
        raise _Failed(problem, int(retry_after) if retry_after.isdecimal() else 0)

    async def _post(self, body: bytes) -> tuple[int, Mapping[str, str], bytes]:
        """Post to the service and follow redirects. Only the service's origin gets the key."""
        url = self._url
        for _ in range(_MAX_REDIRECTS + 1):
            headers = {"Content-Type": "application/json"}
            if self._key and url.origin() == self._url.origin():
                headers["Authorization"] = f"Bearer {self._key}"
            posting = self._session.post(
                url, data=body, headers=headers, proxy=_proxy_of(url), allow_redirects=False
            )
            async with posting as response:
                answer = await response.read()
            if response.status not in _REDIRECTS:
                return response.status, response.headers, answer
            url = _next_url(url, response)
        raise Unavailable(f"{self._url} redirects more than {_MAX_REDIRECTS} times")

    def _recorded(self, body: bytes) -> Recorded:
        try:
            answer = RecordedBody.model_validate_json(body)
        except ValueError:
            raise Unavailable(f"{self._url} is not a task-audit service") from None
        ids = [str(task_id) for task_id in answer.task_ids]
        return Recorded(answer.recorded, answer.duplicates, ids)


def _next_url(url: URL, response: aiohttp.ClientResponse) -> URL:
    """Return the target of a redirect, if a POST may be repeated there."""
    location = response.headers.get("Location", "")
    try:
        target = url.join(URL(location))
    except ValueError:
        raise Unavailable(f"{url} redirects to an invalid URL ({response.status})") from None
    shown = target.with_user(None) if target.host else target
    if response.status not in _SAME_REQUEST:
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


def _elements(text: str) -> Iterator[str]:
    """Yield the text of each element of a JSON array."""
    position = _after_separators(text, text.index("[") + 1)
    while text[position] != "]":
        _, end = _decoder.raw_decode(text, position)
        yield text[position:end]
        position = _after_separators(text, end)


def _after_separators(text: str, position: int) -> int:
    found = _SEPARATORS.match(text, position)
    return found.end() if found else position


def _array(elements: Sequence[str]) -> bytes:
    return f"[{','.join(elements)}]".encode()


def _text_of(failure: Exception) -> str:
    return str(failure) or type(failure).__name__


def _detail(status: int, body: bytes) -> str:
    try:
        return str(from_json(body)["detail"])
    except (ValueError, TypeError, KeyError):
        return f"status {status}"


@asynccontextmanager
async def service_sender(
    url: str, key: str | None = None
) -> AsyncIterator[Callable[[TaskBatch], Awaitable[Recorded]]]:
    """Open an HTTP client to record through the service at a URL. Only it gets the API key."""
    timeout = aiohttp.ClientTimeout(total=_REQUEST_SECONDS)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        yield _Client(session, url, key).send
