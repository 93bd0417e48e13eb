"""`audit log`: shows the size of the event log, and adds older tasks to it."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from audit.commands.database import run_with_pool
from audit.commands.options import DataDir, Dsn, Json, settings_from
from audit.commands.output import print_json, print_line, print_table
from audit.errors import Unavailable

if TYPE_CHECKING:
    from audit.history.backfill import Imported
    from audit.postgres.pool import Pool
    from audit.telemetry.metrics import LogSize

_MEASURE_SECONDS = 60
#: A portion of tasks with large documents takes longer than a request may.
_STATEMENT_TIMEOUT_SECONDS = 3600

app = typer.Typer(help="Show and complete the event log.", rich_markup_mode=None)


@app.command("status")
def show_status(as_json: Json = False, dsn: Dsn = None, data_dir: DataDir = None) -> None:
    """Show how many events have a position, and how many wait for one in the queue."""
    from audit.history.service import AuditService

    async def measure(pool: Pool) -> LogSize:
        size = await AuditService(pool).log.measure(_MEASURE_SECONDS)
        if size is None:
            raise Unavailable("the database does not answer")
        return size

    size = run_with_pool(measure, settings_from(dsn=dsn, data_dir=data_dir))
    if as_json:
        print_json(asdict(size))
        return
    rows = (
        ("log", f"{size.events:,}", f"{size.bytes:,}", "-"),
        ("queue", f"{size.queued:,}", f"{size.queue_bytes:,}", f"{size.queued_seconds:.1f} s"),
    )
    print_table(("part", "events", "bytes", "oldest"), rows)


@app.command("backfill")
def backfill(as_json: Json = False, dsn: Dsn = None, data_dir: DataDir = None) -> None:
    """Add an event for each task that was recorded before the event log began.

    Run it as the owner of the database. Others can record and change tasks meanwhile. It works in
    portions, and can be stopped at any time and started again.
    """
    settings = settings_from(dsn=dsn, data_dir=data_dir).model_copy(
        update={"statement_timeout_seconds": _STATEMENT_TIMEOUT_SECONDS}
    )
    done = run_with_pool(_import_all, settings)
    if as_json:
        print_json({"tasks": done.tasks, "imported": done.imported})
    else:
        print_line(
            f"imported {done.imported:,} of {done.tasks:,} tasks; the others already had events"
        )


async def _import_all(pool: Pool) -> Imported:
    """Import everything with a progress bar, if standard error is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from audit.history.backfill import Imported
    from audit.history.service import AuditService

    service = AuditService(pool)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,} tasks, {task.fields[imported]:,} imported"),
        TimeElapsedColumn(),
    )
    screen = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
    done = Imported(0, 0, 0)
    with Progress(*columns, console=screen, disable=not sys.stderr.isatty()) as bar:
        row = bar.add_task("importing", total=await service.get_task_count(), imported=0)
        async for done in service.backfill.run():
            waiting = f", waiting for {done.skipped:,} that others change" if done.skipped else ""
            bar.update(
                row,
                description=f"importing{waiting}",
                completed=done.tasks,
                imported=done.imported,
            )
    return done
