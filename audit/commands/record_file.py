"""Reads files of tasks in batches, and sends each batch."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import IO, Any, Final

from audit.commands.output import note
from audit.errors import Invalid, Malformed, Problem, TimedOut, Unavailable
from audit.history import json_text, utf8
from audit.history.json_text import Reader
from audit.history.parsing import MAX_TASKS_IN_ARRAY, TaskBatch, TaskCollector
from audit.history.task import Recorded
from audit.limits import DEFAULTS, Limits

_BATCH = MAX_TASKS_IN_ARRAY
_BATCH_BYTES = 8 * 1024 * 1024
_PIECE_BYTES = 64 * 1024
#: Batches that are sent at the same time.
AT_ONCE: Final = 2
#: Tasks have it in the files of exports.
_SET_BY_DATABASE: Final = "recorded_at"


class Refused(Problem):
    """Tasks that cannot be recorded. `detail` says which and why."""


#: Records a batch of at most 1,000 tasks, all or none.
Send = Callable[[TaskBatch], Awaitable[Recorded]]
#: Called after each batch with its size and its result.
Advance = Callable[[int, Recorded], None]


async def record_file(
    source: IO[bytes],
    name: str,
    send: Send,
    advance: Advance,
    limits: Limits = DEFAULTS,
) -> None:
    """Record all tasks of an NDJSON or JSON file.

    `advance` is called after each batch with its size in bytes and its result. Every task needs a
    task_id, by which a second run recognises it as a duplicate.

    Raises:
        Refused: a task is not valid, has no id, or conflicts with a recorded one. The batches
            before it stay recorded.
        Unavailable: the database or the service does not answer.
    """
    try:
        # Reading from a pipe may block, so each batch must be recorded before the next is read.
        at_once = AT_ONCE if source.seekable() else 1
        await send_all(_batches(source, limits), send, advance, at_once=at_once)
    except (Unavailable, TimedOut):
        raise
    except Problem as problem:
        raise Refused(f"{name}: {problem.detail}") from problem


async def send_all(
    batches: Iterable[tuple[TaskBatch, int]],
    send: Send,
    advance: Advance,
    *,
    at_once: int = AT_ONCE,
) -> None:
    """Send batches in their order, at most `at_once` of them at the same time.

    `advance` is called after each batch with its size and its result.
    """

    async def send_one(batch: TaskBatch, size: int) -> None:
        advance(size, await send(batch))

    pending: deque[asyncio.Task[None]] = deque()
    try:
        for batch, size in batches:
            pending.append(asyncio.create_task(send_one(batch, size)))
            if len(pending) == at_once:
                await pending.popleft()
        while pending:
            await pending.popleft()
    except Problem:
        await asyncio.gather(*pending, return_exceptions=True)
        raise


def _batches(source: IO[bytes], limits: Limits) -> Iterator[tuple[TaskBatch, int]]:
    """Yield batches of validated tasks, each with its size in the file."""
    tasks = TaskCollector(limits)
    size = 0
    is_export = False
    for label, given, value, length in _tasks(source, limits):
        text = given
        size += length
        if isinstance(value, dict) and _SET_BY_DATABASE in value:
            if not is_export:
                is_export = True
                note(f"{_SET_BY_DATABASE} is left out: it is the time of this recording")
            del value[_SET_BY_DATABASE]
            text = json_text.without(given, _SET_BY_DATABASE)
        if text:
            if isinstance(value, dict) and not value.get("task_id"):
                raise Invalid(
                    f"{label}task_id is missing; without it, a second run would record the task"
                    " again"
                )
            tasks.add(label, text, value)
        if len(tasks) >= _BATCH or size >= _BATCH_BYTES:
            if batch := tasks.batch():
                yield batch, size
            tasks, size = TaskCollector(limits), 0
    if batch := tasks.batch():
        yield batch, size


def _tasks(source: IO[bytes], limits: Limits) -> Iterator[tuple[str, str, Any, int]]:
    """Yield the label, text, value and size of each line or each element of an array."""
    reader = Reader(limits)
    number, line = 1, _first_line(source, limits)
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


def _first_line(source: IO[bytes], limits: Limits) -> bytes:
    """Return the first line, or the beginning of a long line that starts an array."""
    line = source.readline(limits.max_task_bytes)
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
