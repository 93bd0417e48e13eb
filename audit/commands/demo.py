"""`audit demo`: records or prints a generated history."""

from __future__ import annotations

import itertools
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from audit.commands.options import ApiKey, DataDir, Dsn, Partition, Url, settings_from
from audit.commands.output import print_line
from audit.commands.record import run_recording

if TYPE_CHECKING:
    from audit.commands.record_file import Advance, Send


def demo(
    tasks: Annotated[int, typer.Option("--tasks", min=1, help="Number of tasks.")] = 100_000,
    days: Annotated[
        int, typer.Option("--days", min=1, max=3650, help="Number of days that the history spans.")
    ] = 365,
    seed: Annotated[
        int, typer.Option("--seed", help="Seed. The same seed gives the same tasks.")
    ] = 1,
    until: Annotated[
        str | None,
        typer.Option(
            "--until",
            help="RFC 3339 time at which the history ends.",
            show_default="the last full hour",
        ),
    ] = None,
    show: Annotated[
        bool, typer.Option("--print", help="Print the tasks as NDJSON instead of recording them.")
    ] = False,
    url: Url = None,
    key: ApiKey = None,
    dsn: Dsn = None,
    data_dir: DataDir = None,
    partition: Partition = None,
) -> None:
    """Record a generated history.

    It is realistic, with busy and rare services, and failures.
    """
    from audit.commands.record_file import send_all
    from audit.history.demo import generate
    from audit.history.parsing import MAX_TASKS_IN_ARRAY, batch_of
    from audit.history.values import parse_time

    end = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    if until is not None:
        try:
            end = parse_time(until)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--until") from None
    history = generate(tasks, days=days, until=end, seed=seed)
    if show:
        for task in history:
            print_line(json.dumps(task))
        return

    async def work(send: Send, advance: Advance) -> None:
        parts = iter(lambda: list(itertools.islice(history, MAX_TASKS_IN_ARRAY)), [])
        await send_all(((batch_of(part), len(part)) for part in parts), send, advance)

    settings = settings_from(dsn=dsn, data_dir=data_dir, partition=partition)
    run_recording(work, tasks, settings, url, key, create=True)
