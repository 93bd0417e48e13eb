"""Records files of tasks: reads them in batches, sends them, and can be run again at any time."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from typing import IO, Any, Protocol

from audit.errors import Invalid, Malformed, Problem, TimedOut, Unavailable
from audit.history import utf8
from audit.history.json_text import Reader
from audit.history.parsing import MAX_TASKS_IN_ARRAY, TaskBatch, TaskCollector
from audit.history.recording import Recorded
from audit.history.service import AuditService
from audit.postgres.pool import open_pool
from audit.postgres.schema import require_current
from audit.settings import DEFAULTS, Settings

_BATCH = MAX_TASKS_IN_ARRAY
_BATCH_BYTES = 8 * 1024 * 1024
_PIECE_BYTES = 64 * 1024
_AT_ONCE = 2


class Refused(Problem):
    """Tasks that cannot be recorded; `detail` says which and why."""


class Target(Protocol):
    """Where tasks go."""

    async def send(self, batch: TaskBatch) -> Recorded:
        """Record at most 1,000 tasks, all or none."""


async def record_file(
    source: IO[bytes],
    name: str,
    target: Target,
    advance: Callable[[int, Recorded], None],
    settings: Settings = DEFAULTS,
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
        await send_all(_batches(source, settings), target, advance, at_once=at_once)
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


def _batches(source: IO[bytes], settings: Settings) -> Iterator[tuple[TaskBatch, int]]:
    """Yield batches of validated tasks, each with the bytes that it took in the file."""
    tasks = TaskCollector(settings)
    size = 0
    for label, text, value, length in _tasks(source, settings):
        size += length
        if text:
            if isinstance(value, dict) and not value.get("task_id"):
                raise Invalid(
                    f"{label}task_id is missing; without it a second run would record the task"
                    " twice"
                )
            tasks.add(label, text, value)
        if len(tasks) >= _BATCH or size >= _BATCH_BYTES:
            if batch := tasks.batch():
                yield batch, size
            tasks, size = TaskCollector(settings), 0
    if batch := tasks.batch():
        yield batch, size


def _tasks(source: IO[bytes], settings: Settings) -> Iterator[tuple[str, str, Any, int]]:
    """Yield label, text, value and length of each line, or of each element of an array."""
    reader = Reader(settings)
    number, line = 1, _first_line(source, settings)
    while line and not line.strip():
        number, line = number + 1, source.readline()
    if not line:
        return
    if line.lstrip()[:1] != b"[" and _is_json(reader, line):
        while line:
            label = f"line {number}: "
            text = utf8.line_text(line.strip(), label)
            yield label, text, reader.read(text, label) if text else None, len(line)
            number, line = number + 1, source.readline()
        return
    pieces = itertools.chain(
        [b"\n" * (number - 1) + line], iter(lambda: source.read(_PIECE_BYTES), b"")
    )
    try:
        for label, text, value in reader.elements(utf8.texts(pieces), _by_line):
            yield label, text, value, len(text.encode())
    except Malformed as broken:
        raise Malformed(f"neither NDJSON nor JSON: {broken.detail}") from None


def _by_line(_position: int | None, line: int) -> str:
    return f"line {line}: "


def _first_line(source: IO[bytes], settings: Settings) -> bytes:
    """Return the first line; of a long one that begins an array, no more than its beginning."""
    line = source.readline(settings.max_task_bytes)
    line = b"".join(utf8.without_mark([line]))
    if line.lstrip()[:1] == b"[" or line.endswith(b"\n"):
        return line
    return line + source.readline()


def _is_json(reader: Reader, line: bytes) -> bool:
    try:
        reader.read(utf8.line_text(line.strip(), ""))
    except Malformed:
        return False
    except Invalid:
        return True
    return True


class DatabaseTarget:
    """Records straight into the database."""

    def __init__(self, service: AuditService) -> None:
        self._service = service

    async def send(self, batch: TaskBatch) -> Recorded:
        """Record them in one transaction."""
        return await self._service.recording.record_batches([batch])


@asynccontextmanager
async def database_target(settings: Settings, dsn: str) -> AsyncIterator[Target]:
    """Open connections to a database whose schema is current."""
    async with open_pool(settings.model_copy(update={"pool_size": _AT_ONCE}), dsn) as pool:
        await require_current(pool)
        yield DatabaseTarget(AuditService(pool, settings))
