"""Records files of tasks: reads them in batches, sends them, and can be run again at any time."""

from __future__ import annotations

import asyncio
import json
import re
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from typing import IO, Protocol

from pydantic_core import from_json

from audit import models
from audit.database import open_pool, require_current
from audit.errors import Invalid, Malformed, Problem, TimedOut, Unavailable
from audit.models import TaskBatch
from audit.service import AuditService, Recorded
from audit.settings import Settings

Lines = list[tuple[int, bytes]]

_BATCH = models.MAX_TASKS_IN_ARRAY
_BATCH_BYTES = 8 * 1024 * 1024
_AT_ONCE = 2
_SPACE = re.compile(r"[ \t\r\n]*")


class Refused(Problem):
    """Tasks that cannot be recorded; `detail` says which and why."""


class Target(Protocol):
    """Where tasks go."""

    async def send(self, batch: TaskBatch) -> Recorded:
        """Record at most 1,000 tasks, all or none."""


async def record_file(
    source: IO[bytes], name: str, target: Target, advance: Callable[[int, Recorded], None]
) -> None:
    """Record every task of a file of NDJSON or JSON.

    `advance` is told after each batch how many bytes were read, and what came of them. Every task
    needs its task_id: by it, a second run records nothing twice.

    Raises:
        Refused: a task is not valid, has no id, or conflicts with one that is recorded; the
            batches before it stay recorded.
        Unavailable: the target does not answer.
    """
    try:
        # To read a pipe is to wait for it: what was read before must be recorded by then.
        at_once = _AT_ONCE if source.seekable() else 1
        await send_all(_judged(source), target, advance, at_once=at_once)
    except (Unavailable, TimedOut):
        raise
    except Problem as problem:
        raise Refused(f"{name}: {problem.detail}") from problem


async def send_all(
    batches: Iterable[tuple[TaskBatch, int]],
    target: Target,
    advance: Callable[[int, Recorded], None],
    *,
    at_once: int = _AT_ONCE,
) -> None:
    """Send batches in their order, `at_once` of them together.

    `advance` is told, after each, the number that came with it, and what came of it.
    """

    async def send(batch: TaskBatch, size: int) -> None:
        advance(size, await target.send(batch))

    under_way: deque[asyncio.Task[None]] = deque()
    try:
        for batch, size in batches:
            under_way.append(asyncio.create_task(send(batch, size)))
            if len(under_way) == at_once:
                await under_way.popleft()
        while under_way:
            await under_way.popleft()
    except Problem:
        await asyncio.gather(*under_way, return_exceptions=True)
        raise


def _judged(source: IO[bytes]) -> Iterator[tuple[TaskBatch, int]]:
    """Yield batches, each with the bytes that it took in the file."""
    for lines, size in _batches(source):
        batch = models.parse_lines(lines)
        _require_ids(lines)
        yield batch, size


def _require_ids(lines: Lines) -> None:
    for number, line in lines:
        if not from_json(line).get("task_id"):
            raise Invalid(
                f"line {number}: task_id is missing; without it a second run would record the"
                " task twice"
            )


def _batches(source: IO[bytes]) -> Iterator[tuple[Lines, int]]:
    """Yield lines of tasks with their numbers, and the bytes that they took in the file."""
    batch: Lines = []
    size = 0
    for number, line, length in _tasks(source):
        if line.strip():
            batch.append((number, line))
        size += length
        if len(batch) >= _BATCH or size >= _BATCH_BYTES:
            if batch:
                yield batch, size
            batch, size = [], 0
    if batch:
        yield batch, size


def _tasks(source: IO[bytes]) -> Iterator[tuple[int, bytes, int]]:
    """Yield the number, text and length of each task: by lines, or by members of an array."""
    number, first = 1, source.readline()
    while first and not first.strip():
        number, first = number + 1, source.readline()
    if first.lstrip()[:1] != b"[" and _is_json(first):
        yield number, first, len(first)
        for following, line in enumerate(source, number + 1):
            yield following, line, len(line)
        return
    try:
        text = "\n" * (number - 1) + (first + source.read()).decode()
        yield from _members(text)
    except (ValueError, RecursionError) as broken:
        raise Malformed(f"neither NDJSON nor JSON: {broken}") from None


def _is_json(line: bytes) -> bool:
    try:
        from_json(line)
    except ValueError:
        return False
    return True


def _members(text: str) -> Iterator[tuple[int, bytes, int]]:
    """Yield the members of a JSON array, or the one object, as they are written."""
    decoder = json.JSONDecoder()
    place = _skip(text, 0)
    is_array = text[place : place + 1] == "["
    if is_array:
        place = _skip(text, place + 1)
    number, counted = 1, 0
    while place < len(text) and text[place] != "]":
        number, counted = number + text.count("\n", counted, place), place
        _, end = decoder.raw_decode(text, place)
        member = text[place:end].replace("\n", " ").encode()
        yield number, member, len(member)
        place = _skip(text, end)
        if is_array and text[place : place + 1] == ",":
            place = _skip(text, place + 1)
        elif not is_array or text[place : place + 1] != "]":
            break
    rest = text[place + is_array :].strip()
    if (is_array and text[place : place + 1] != "]") or rest:
        raise ValueError(f"unexpected text after the task of line {number}")


def _skip(text: str, place: int) -> int:
    space = _SPACE.match(text, place)
    return space.end() if space else place


class DatabaseTarget:
    """Records straight into the database."""

    def __init__(self, service: AuditService) -> None:
        self._service = service

    async def send(self, batch: TaskBatch) -> Recorded:
        """Record them in one transaction."""
        return await self._service.record_batches([batch])


@asynccontextmanager
async def database_target(settings: Settings, dsn: str) -> AsyncIterator[Target]:
    """Open connections to a database whose schema is current."""
    async with open_pool(settings.model_copy(update={"pool_size": _AT_ONCE}), dsn) as pool:
        await require_current(pool)
        yield DatabaseTarget(AuditService(pool, settings))
