"""Responses whose body is known before the first byte is sent."""

from __future__ import annotations

import time
from collections.abc import Mapping
from email.utils import formatdate
from functools import lru_cache
from typing import Final

from aiohttp import hdrs, web
from aiohttp.abc import AbstractStreamWriter

from audit.history.events import HistoryPage
from audit.history.task import TaskDocument
from audit.web.buffers import Unread

#: Clients may store a task, but must ask each time whether it is still current. Unlike a list, it
#: is never compressed.
TASK_HEADERS: Final[dict[str, str]] = {
    hdrs.CACHE_CONTROL: "private, no-cache",
    hdrs.VARY: "Authorization, Cookie",
}
#: The response depends on the caller and the moment, so neither clients nor proxies may store it.
NO_STORE: Final[dict[str, str]] = {
    hdrs.CACHE_CONTROL: "no-store",
    hdrs.VARY: "Authorization, Cookie",
}
#: A body of this size or more is part of the memory that `unread` limits until the client reads it.
_LARGE_BYTES: Final = 64 * 1024


class BytesResponse(web.StreamResponse):
    """A response whose head and body are sent in one write.

    `web.Response` also prepares cookies, compression, chunks and signals. The service uses none of
    them, and they would take 7 % more of the time of a cached page (decision 34).
    """

    def __init__(self, body: bytes | None, headers: Mapping[str, str], status: int = 200) -> None:
        """`body` is None if a response of this status has no body (204, 304)."""
        super().__init__(status=status, headers=headers)
        self.body = body

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter:
        """Send the head and the body."""
        if self._keep_alive is None:
            self._keep_alive = request.keep_alive
        writer, version = request.writer, request.version
        self._complete_headers(is_old=version.minor == 0)
        status_line = f"HTTP/{version.major}.{version.minor} {self.status} {self.reason}"
        await writer.write_headers(status_line, self.headers)
        body = b"" if request.method == "HEAD" else self.body or b""
        unread: Unread | None = None
        if len(body) >= _LARGE_BYTES:
            unread = getattr(request.protocol, "unread", None)
        if unread is None:
            await writer.write_eof(body)
        else:
            # aiohttp copies the body if it is sent in the same write as the head.
            writer.send_headers()
            with unread.response(request.transport, body):
                await writer.write_eof(body)
        self._eof_sent = True
        return writer

    def to_bytes(self) -> bytes:
        """Return the bytes of the response to a request that was not read."""
        self._complete_headers(is_old=False)
        lines = [f"HTTP/1.1 {self.status} {self.reason}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        return "\r\n".join([*lines, "", ""]).encode() + (self.body or b"")

    def _complete_headers(self, *, is_old: bool) -> None:
        headers = self.headers
        if self.body is not None:
            headers[hdrs.CONTENT_LENGTH] = str(len(self.body))
        headers[hdrs.DATE] = _date(int(time.time()))
        if not self._keep_alive:
            headers[hdrs.CONNECTION] = "close"
        elif is_old:
            headers[hdrs.CONNECTION] = "keep-alive"


@lru_cache(maxsize=1)
def _date(seconds: int) -> str:
    return formatdate(seconds, usegmt=True)


def task_response(document: TaskDocument) -> BytesResponse:
    """Return a response of one task, with its ETag."""
    headers = {
        **TASK_HEADERS,
        hdrs.CONTENT_TYPE: "application/json",
        hdrs.ETAG: document.etag,
    }
    return BytesResponse(document.json.encode(), headers)


def history_response(page: HistoryPage, link: str | None) -> BytesResponse:
    """Return a response of the events of a task, with its ETag."""
    headers = {
        **TASK_HEADERS,
        hdrs.CONTENT_TYPE: "application/json",
        hdrs.ETAG: page.etag,
    }
    if link:
        headers[hdrs.LINK] = link
    return BytesResponse(page.body, headers)


def json_response(body: bytes, status: int = 200) -> BytesResponse:
    """Return a response of JSON text."""
    return BytesResponse(body, {hdrs.CONTENT_TYPE: "application/json"}, status)
