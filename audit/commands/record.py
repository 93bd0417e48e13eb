"""`audit record`: records files of tasks through a service, or straight into the database."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from audit.commands.database import database
from audit.commands.options import ApiKey, DataDir, Dsn, Partition, Url, settings_from
from audit.commands.output import print_line
from audit.settings import Settings

if TYPE_CHECKING:
    from audit.commands.record_file import Advance, Send
    from audit.history.task import Recorded


def record(
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE...", help="NDJSON or JSON files. - is standard input."),
    ],
    url: Url = None,
    key: ApiKey = None,
    dsn: Dsn = None,
    data_dir: DataDir = None,
    partition: Partition = None,
) -> None:
    """Record tasks from files. Every task needs a task_id, so that a second run adds nothing."""
    from audit.commands.record_file import record_file

    settings = settings_from(dsn=dsn, data_dir=data_dir, partition=partition)
    with contextlib.ExitStack() as stack:
        sources = [(name, stack.enter_context(_open(name))) for name in files]
        sizes = [_size(source) for _, source in sources]

        async def work(send: Send, advance: Advance) -> None:
            for name, source in sources:
                await record_file(source, name, send, advance, settings)

        total = sum(size for size in sizes if size) if None not in sizes else None
        run_recording(work, total, settings, url, key)


def run_recording(
    work: Callable[[Send, Advance], Coroutine[Any, Any, None]],
    total: int | None,
    settings: Settings,
    url: str | None,
    key: str | None,
    *,
    create: bool = False,
) -> None:
    """Let `work` record through the service at `url`, or into the database if there is no `url`.

    `total` is the sum of the sizes that `work` passes to `advance`, None if it is not known.
    """
    from audit.process.loop import run

    with _progress(total) as advance:

        async def record_with(sender: AbstractAsyncContextManager[Send]) -> None:
            async with sender as send:
                await work(send, advance)

        if url is not None:
            from audit.commands.record_url import service_sender

            run(record_with(service_sender(url, key)))
        else:
            from audit.commands.record_database import database_sender

            with database(settings, create=create) as dsn:
                run(record_with(database_sender(settings, dsn)))


@contextlib.contextmanager
def _progress(total: int | None) -> Iterator[Advance]:
    """Show a progress bar if standard error is a terminal, and print the sums at the end."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    recorded = duplicates = 0
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[tasks]:,} tasks"),
        TimeElapsedColumn(),
    )
    # The log is written to sys.stderr, which rich replaces to show log lines above the bar.
    screen = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
    with Progress(*columns, console=screen, disable=not sys.stderr.isatty()) as bar:
        row = bar.add_task("recording", total=total, tasks=0)

        def advance(size: int, done: Recorded) -> None:
            nonlocal recorded, duplicates
            recorded += done.recorded
            duplicates += done.duplicates
            bar.update(row, advance=size, tasks=recorded + duplicates)

        try:
            yield advance
        finally:
            bar.stop()
            print_line(f"recorded {recorded:,}, duplicates {duplicates:,}")


def _open(name: str) -> IO[bytes]:
    try:
        if name == "-":
            os.read(sys.stdin.fileno(), 0)  # fails if standard input is closed
            return sys.stdin.buffer
        return Path(name).open("rb")
    except OSError as failure:
        raise typer.BadParameter(f"{name}: {failure.strerror}") from None


def _size(source: IO[bytes]) -> int | None:
    """Return the size of a regular file in bytes, None for anything else."""
    status = os.fstat(source.fileno())
    return status.st_size if stat.S_ISREG(status.st_mode) else None
