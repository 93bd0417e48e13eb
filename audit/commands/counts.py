"""`audit counts`: checks or rebuilds the counts from which the service reads totals."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from audit.commands.database import run_with_pool
from audit.commands.options import DataDir, Dsn, Json, settings_from
from audit.commands.output import note, print_json, print_line, print_table
from audit.errors import Problem

if TYPE_CHECKING:
    from audit.postgres.pool import Pool

#: Counting a long history takes minutes. This is more than the setting allows for a request.
_STATEMENT_TIMEOUT_SECONDS = 24 * 3600
_COLUMNS = ("service", "grain", "bucket", "state", "intent", "expected", "counted")


class CountsDiffer(Problem):
    """Some counts do not match the tasks."""


def counts(
    check: Annotated[
        bool, typer.Option("--check", help="Recount all tasks, and print each wrong count.")
    ] = False,
    rebuild: Annotated[
        bool,
        typer.Option(
            "--rebuild",
            help="Recount all tasks, and store the counts. Recording continues meanwhile.",
        ),
    ] = False,
    as_json: Json = False,
    dsn: Dsn = None,
    data_dir: DataDir = None,
) -> None:
    """Check or rebuild the counts that make totals fast. Exits with 65 if a count is wrong."""
    from audit.history.service import AuditService

    if check == rebuild:
        raise typer.BadParameter("give either --check or --rebuild")
    if as_json and rebuild:
        raise typer.BadParameter("--json needs --check")
    settings = settings_from(dsn=dsn, data_dir=data_dir).model_copy(
        update={"statement_timeout_seconds": _STATEMENT_TIMEOUT_SECONDS}
    )

    async def rebuild_all(pool: Pool) -> int:
        return await AuditService(pool).upkeep.rebuild_counts()

    async def find_differences(pool: Pool) -> list[tuple[Any, ...]]:
        service = AuditService(pool)
        for gap in await service.partitions.find_missing():
            note(
                f"no partition holds {gap['tasks']:,} recorded tasks, created"
                f" {_between(gap['since'], gap['until'])}: it was detached or dropped"
            )
        return [tuple(one) for one in await service.upkeep.check_counts()]

    if rebuild:
        print_line(f"counted {run_with_pool(rebuild_all, settings):,} tasks")
        return
    differences = run_with_pool(find_differences, settings)
    if as_json:
        print_json([dict(zip(_COLUMNS, one, strict=True)) for one in differences])
    elif differences:
        print_table(_COLUMNS, ([str(value) for value in one] for one in differences))
    else:
        print_line("all counts are exact")
    if differences:
        raise CountsDiffer("the counts differ; `audit counts --rebuild` repairs them")


def _between(since: datetime | None, until: datetime | None) -> str:
    """Return a half-open range of days in words."""
    words = (("from", since), ("before", until))
    return " and ".join(f"{word} {at:%Y-%m-%d}" for word, at in words if at) or "at any time"
