"""`audit spool`: shows and sends what waits in a spool, and decides about refused records."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from audit.commands.exit_codes import ExitCode
from audit.commands.options import Json, Timeout, seconds_of, validate_key, validate_url
from audit.commands.output import note, print_json, print_line, print_table

if TYPE_CHECKING:
    from audit.recorder.spool import Refused, Size, Spool

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
    _print_size(size)
    if refused:
        rows = [(each.task_id, each.kind, _time(each.refused_at), _why(each)) for each in refused]
        print_table(("task", "record", "refused", "problem"), rows)


@app.command("flush")
def flush(
    file: File,
    url: Annotated[
        str | None,
        typer.Option(
            "--url",
            metavar="URL",
            callback=validate_url,
            help="URL of the service to record through. [AUDIT_URL; default: the default profile]",
            show_default=False,
        ),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(
            "--key",
            metavar="KEY",
            callback=validate_key,
            help="API key of scope record. Prefer the variable, because other users of the machine"
            " can see options. [AUDIT_KEY; default: the key of the profile]",
            show_default=False,
        ),
    ] = None,
    timeout: Timeout = "30s",
) -> None:
    """Send what waits, without the program that recorded it.

    If a recorder of the spool is running, it sends, and this waits for it. Ends with 65 if the
    service refuses a record.
    """
    from audit.recorder import Recorder

    spool = _open(file)
    refused_before = spool.size().refused
    problems: list[Exception] = []
    # Whether a process that executed a task is gone is for the program to say that started it.
    recorder = Recorder(url, key=key, spool=file, on_error=problems.append, orphans="leave")
    try:
        is_sent = recorder.flush(seconds_of(timeout) or 0)
    finally:
        recorder.close(0)
    size = spool.size()
    _print_size(size)
    if size.refused > refused_before:
        raise typer.Exit(ExitCode.DATA)
    if not is_sent:
        if problems:
            raise problems[-1]
        raise typer.Exit(ExitCode.TIMEOUT)


@app.command("retry")
def retry(file: File, task_ids: TaskIds = None) -> None:
    """Send refused records again: those of the given tasks, or all of them.

    The recorder of the spool sends them. If none is running, the next one does, or `flush`.
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


def _print_size(size: Size) -> None:
    print_line(
        f"{size.waiting:,} waiting (the oldest for {size.oldest_seconds:,.0f} s),"
        f" {size.running:,} tasks running, {size.refused:,} refused"
    )


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
