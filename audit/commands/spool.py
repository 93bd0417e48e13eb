"""`audit spool`: shows what a recorder has not sent, and decides about what the service refused."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from audit.commands.options import Json
from audit.commands.output import note, print_json, print_line, print_table

if TYPE_CHECKING:
    from audit.recorder.spool import Refused, Spool

app = typer.Typer(help="Show and repair the spool of a recorder.", rich_markup_mode=None)

File = Annotated[Path, typer.Argument(metavar="FILE", help="The file of the spool.")]
TaskIds = Annotated[
    list[str] | None, typer.Argument(metavar="[TASK]...", help="Ids of tasks that were refused.")
]


@app.command("list")
def list_refused(file: File, as_json: Json = False) -> None:
    """Show how many records wait, and each record that the service refused."""
    spool = _open(file)
    size, refused = spool.size(), spool.refused()
    if as_json:
        print_json({**asdict(size), "refused": [_as_json(each) for each in refused]})
        return
    print_line(
        f"{size.waiting:,} waiting (the oldest for {size.oldest_seconds:,.0f} s),"
        f" {size.running:,} tasks running, {size.refused:,} refused"
    )
    if refused:
        rows = [(each.task_id, each.kind, _time(each.refused_at), _why(each)) for each in refused]
        print_table(("task", "record", "refused", "problem"), rows)


@app.command("retry")
def retry(file: File, task_ids: TaskIds = None) -> None:
    """Send refused records again: those of the given tasks, or all of them.

    The recorder of the spool sends them. If none is running, the next one does.
    """
    spool = _open(file)
    print_line(f"{spool.retry(_ids(spool, task_ids)):,} records are sent again")


@app.command("drop")
def drop(
    file: File,
    task_ids: TaskIds = None,
    all_refused: Annotated[bool, typer.Option("--all", help="Drop every refused record.")] = False,
) -> None:
    """Delete refused records for ever: those of the given tasks, or with --all every one."""
    if bool(task_ids) == all_refused:
        raise typer.BadParameter("give the ids of tasks, or --all")
    spool = _open(file)
    print_line(f"{spool.drop(_ids(spool, task_ids)):,} records are dropped")


def _open(file: Path) -> Spool:
    from audit.recorder.spool import Spool

    if not file.is_file():
        raise typer.BadParameter(f"{file}: no such file", param_hint="FILE")
    return Spool(file)


def _ids(spool: Spool, given: list[str] | None) -> list[str]:
    refused = {each.task_id for each in spool.refused()}
    unknown = set(given or ()) - refused
    if unknown:
        note(f"nothing of these tasks was refused: {', '.join(sorted(unknown))}")
    return sorted(refused & set(given)) if given else sorted(refused)


def _time(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}"


def _why(refused: Refused) -> str:
    problem = json.loads(refused.problem)
    return f"{problem['status']} {problem['detail']}"


def _as_json(refused: Refused) -> dict[str, object]:
    return {
        **asdict(refused),
        "body": json.loads(refused.body),
        "problem": json.loads(refused.problem),
        "made_at": datetime.fromtimestamp(refused.made_at, UTC),
        "refused_at": datetime.fromtimestamp(refused.refused_at, UTC),
    }
