"""The routes to the changes of all tasks: by long polling, and as a stream of events."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from typing import Final

from aiohttp import hdrs, web

from audit.access.identity import Scope, refused
from audit.errors import PositionGone, Problem
from audit.history.feed import CHECK_SECONDS, Feed, Portion
from audit.history.feed_query import ChangesQuery, FeedQuery, last_event_id
from audit.web.event_stream import EventStream, event_bytes
from audit.web.guard import GUARD
from audit.web.handlers.asking import parse
from audit.web.responses import NO_STORE, BytesResponse
from audit.web.state import ROWS, SERVICE, SETTINGS

#: How often a stream without changes says where it is.
_BOOKMARK_SECONDS: Final = 15.0
#: How long a stream waits before it reads again from a database that did not answer.
_PAUSE_SECONDS: Final = 1.0
#: The changes that a stream sends at once. A client that does not read holds them in memory.
_PORTION: Final = 200
_PORTION_BYTES: Final = 256 * 1024
#: After this time a browser connects again.
_RETRY: Final = b"retry: 2000\n\n"
_HEADERS: Final = {**NO_STORE, hdrs.CONTENT_TYPE: "application/json"}


async def get_changes(request: web.Request) -> BytesResponse:
    """Read the changes of all tasks from a position on, and wait if there are none yet.

    Oldest first, in one order for all readers, without gaps. Ask again with the `position` of the
    response. A write appears in the changes when its event has got a number, which usually takes
    less than half a second.
    """
    query = parse(request, ChangesQuery)
    feed = request.app[SERVICE].feed

    async def check() -> None:
        if not await request.app[GUARD].still_admits(request, Scope.READ):
            raise refused("the key is not valid any more")

    with feed.reader():
        max_bytes = request.app[SETTINGS].max_page_bytes
        portion = await feed.poll(query, max_bytes=max_bytes, check=check)
    request[ROWS] = len(portion.changes)
    return BytesResponse(portion.body, _HEADERS)


async def get_feed(request: web.Request) -> EventStream:
    """Follow the changes of all tasks as Server-Sent Events.

    `event: change` has a change as JSON, and `event: position` says where the stream is: at the
    beginning, every 15 seconds, and after changes that do not match. The `id` of both is the
    position to continue from. A browser sends it as `Last-Event-ID` when it connects again, and
    other clients may send it as `position`. `event: gone` ends a stream whose position the log does
    not reach: an older backup of the database was restored, so read the tasks anew.
    """
    query = parse(request, FeedQuery)
    feed = request.app[SERVICE].feed
    position = last_event_id(request.headers.get("Last-Event-ID"))
    if position is None:
        position = query.position
    if position is None:
        position = await feed.end()
    feed.require_room()
    return EventStream(_events(request, feed, query, position))


async def _events(
    request: web.Request, feed: Feed, query: FeedQuery, position: int
) -> AsyncGenerator[bytes, None]:
    """Yield events until the service ends, the key becomes invalid, or the position is gone."""
    guard = request.app[GUARD]
    behind_seconds = 0.0
    with feed.reader():
        # A client that is cut off before its first change must know where it was.
        yield _RETRY + _bookmark(position, behind_seconds)
        marked_at = checked_at = time.monotonic()
        has_moved = True
        while not feed.is_closed:
            now = time.monotonic()
            if now - checked_at >= CHECK_SECONDS:
                if not await guard.still_admits(request, Scope.READ):
                    return
                checked_at = now
            if now - marked_at >= _BOOKMARK_SECONDS:
                yield _bookmark(position, behind_seconds)
                marked_at = now
            if not has_moved:
                has_moved = await feed.wait(position, CHECK_SECONDS)
                continue
            try:
                portion = await feed.read(query, position, limit=_PORTION, max_bytes=_PORTION_BYTES)
            except PositionGone as problem:
                yield event_bytes("gone", json.dumps(problem.members))
                return
            except Problem:
                # The log of the service says what is wrong. The client has missed nothing.
                await asyncio.sleep(_PAUSE_SECONDS)
                continue
            has_moved, behind_seconds = portion.has_more, portion.behind_seconds
            if portion.position > position:
                position = portion.position
                yield _portion_bytes(portion)
                marked_at = time.monotonic()


def _portion_bytes(portion: Portion) -> bytes:
    """Return the events of a portion, and a bookmark if it passes more than the last of them."""
    events = [
        event_bytes("change", change, n + 1)
        for n, change in zip(portion.positions, portion.changes, strict=True)
    ]
    if not portion.positions or portion.positions[-1] + 1 < portion.position:
        events.append(_bookmark(portion.position, portion.behind_seconds))
    return b"".join(events)


def _bookmark(position: int, behind_seconds: float) -> bytes:
    return event_bytes("position", f'{{"behind_seconds":{behind_seconds:.3f}}}', position)
