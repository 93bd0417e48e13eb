"""Answers as they are sent: head and body, known whole, in one piece.

Here and in the way of a question, names of headers are those of `hdrs`, which are compared faster
than strings: eight of them, a twentieth of an answer from memory.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from email.utils import formatdate
from functools import lru_cache
from typing import Final

from aiohttp import hdrs, web
from aiohttp.abc import AbstractStreamWriter

from audit.web.buffers import Unread

#: From here on, a body counts as memory while its client reads it.
_LARGE_BYTES: Final = 64 * 1024


class Whole(web.StreamResponse):
    """An answer that is known whole: its head and its body are sent at once.

    `web.Response` is made ready for cookies, compression, chunks and signals, none of which are
    used here; without that, an answer from memory takes a tenth less.
    """

    def __init__(self, body: bytes | None, headers: Mapping[str, str], status: int = 200) -> None:
        """`body` is None where the status says that there is none."""
        super().__init__(status=status, headers=headers)
        self.body = body

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter:
        """Send it."""
        if self._keep_alive is None:
            self._keep_alive = request.keep_alive
        writer, version = request.writer, request.version
        self._complete_headers(is_old=version.minor == 0)
        status_line = f"HTTP/{version.major}.{version.minor} {self.status} {self.reason}"
        await writer.write_headers(status_line, self.headers)
        body = b"" if request.method == "HEAD" else self.body or b""
        unread: Unread | None = getattr(request.protocol, "unread", None)
        if unread is None or len(body) < _LARGE_BYTES:
            await writer.write_eof(body)
        else:
            # With the head in the same write, aiohttp would copy the body.
            writer.send_headers()
            with unread.response(request.transport, body):
                await writer.write_eof(body)
        self._eof_sent = True
        return writer

    def to_bytes(self) -> bytes:
        """Return what is sent where no request is read: the last of its connection."""
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


def json_response(body: bytes, status: int = 200) -> Whole:
    """Return an answer of JSON that is written already."""
    return Whole(body, {hdrs.CONTENT_TYPE: "application/json"}, status)
