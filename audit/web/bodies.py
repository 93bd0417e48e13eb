"""Receives the body of a request, and parses it without blocking the event loop."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Collection, Iterator
from typing import Final, TypeVar

from aiohttp import hdrs, web

from audit.deadlines import DeadlineExceeded
from audit.errors import BodyTooSlow, Malformed, TimedOut, UnsupportedMedia
from audit.web.content_coding import coding_of, decode, too_large
from audit.web.state import ACCEPT_PATCH, DEADLINE, PARSER, SETTINGS

#: A body up to these limits is parsed within a few milliseconds.
_SMALL_BYTES: Final = 64 * 1024
_SMALL_LINES: Final = 1000

_Result = TypeVar("_Result")


def content_type_of(request: web.Request, allowed: Collection[str]) -> str:
    """Return the content type of the body.

    Raises:
        UnsupportedMedia: it is not allowed, or the content encoding is not supported.
    """
    if request.content_type not in allowed:
        given = request.headers.get(hdrs.CONTENT_TYPE, "none")
        accepted = {"Accept-Patch": ACCEPT_PATCH} if request.method == hdrs.METH_PATCH else {}
        raise UnsupportedMedia(
            f"the content type is {given}; send {' or '.join(allowed)}", headers=accepted
        )
    coding_of(request.headers.getall(hdrs.CONTENT_ENCODING, ()))
    return request.content_type


async def receive(request: web.Request, reserve: Callable[[int], None]) -> bytes:
    """Return the body as it was sent.

    Raises:
        BodyTooSlow, BodyTooLarge: it exceeds a limit.
        Malformed: the connection was lost before the end of the body.
        Unavailable: there is no memory for it.
    """
    try:
        return await request.app[DEADLINE].run(_receive(request, reserve))
    except DeadlineExceeded as exceeded:
        raise BodyTooSlow(f"the body did not arrive within {exceeded.seconds:g} seconds") from None


async def _receive(request: web.Request, reserve: Callable[[int], None]) -> bytes:
    settings = request.app[SETTINGS]
    if (request.content_length or 0) > settings.max_body_bytes:
        raise too_large(settings)
    chunks: list[bytes] = []
    size = 0
    try:
        async for chunk in request.content.iter_any():
            size += len(chunk)
            if size > settings.max_body_bytes:
                raise too_large(settings)
            chunks.append(chunk)
            reserve(len(chunk))
    except web.RequestPayloadError:
        raise Malformed("the body breaks off") from None
    return b"".join(chunks)


async def decode_and_parse(
    request: web.Request, body: bytes, parse: Callable[[Iterator[bytes]], _Result]
) -> _Result:
    """Return what `parse` makes of the pieces of the decoded body.

    A large body is parsed in a thread. If the client leaves, the thread stops at the next piece.

    Raises:
        TimedOut: parsing took too long.
        Problem: the body is not valid.
    """
    coding = coding_of(request.headers.getall(hdrs.CONTENT_ENCODING, ()))
    pieces = decode(body, coding, request.app[SETTINGS])
    is_small = len(body) <= _SMALL_BYTES and body.count(b"\n") <= _SMALL_LINES
    if is_small and coding == "identity":
        return parse(pieces)
    abandoned = threading.Event()
    parsing = asyncio.get_running_loop().run_in_executor(
        request.app[PARSER], _without_gc, parse, _until(abandoned, pieces)
    )
    try:
        return await request.app[DEADLINE].run(parsing)
    except DeadlineExceeded as exceeded:
        raise TimedOut(f"the body was not parsed within {exceeded.seconds:g} seconds") from None
    finally:
        abandoned.set()
        # An exception of the thread refers to this frame, and the future to the exception. Without
        # this, the body of a refused request stays in memory until the next garbage collection.
        del parsing


def _without_gc(parse: Callable[[Iterator[bytes]], _Result], pieces: Iterator[bytes]) -> _Result:
    """Parse without garbage collection, which would stop the event loop for up to a second.

    Reference counting frees the values, which contain no cycles.
    """
    if not gc.isenabled():
        return parse(pieces)
    gc.disable()
    try:
        return parse(pieces)
    finally:
        gc.enable()


def _until(abandoned: threading.Event, pieces: Iterator[bytes]) -> Iterator[bytes]:
    for piece in pieces:
        if abandoned.is_set():
            raise _Abandoned
        yield piece


class _Abandoned(Exception):
    """No request waits for the result any more."""
