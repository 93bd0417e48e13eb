"""`audit export`: all tasks that match, in a file with a manifest."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from audit.commands.exit_codes import ExitCode
from audit.commands.filters import StatusFilters
from audit.commands.options import with_option_groups
from audit.commands.output import note
from audit.commands.place import Place, Where
from audit.commands.printing import InZone
from audit.errors import Invalid, Malformed, Unavailable

if TYPE_CHECKING:
    from audit.client.models import ExportManifest


class Format(StrEnum):
    """The formats of exports."""

    NDJSON = "ndjson"
    CSV = "csv"


@dataclass(frozen=True)
class Form:
    """The options that say how the file looks."""

    format: Annotated[
        Format,
        typer.Option("--format", help="A JSON object per line, or CSV for spreadsheets."),
    ] = Format.NDJSON
    columns: Annotated[
        str | None,
        typer.Option("--columns", help="Columns of CSV, in this order: task_id,status,…"),
    ] = None
    raw: Annotated[
        bool,
        typer.Option(
            "--raw",
            help="Leave all cells of CSV as they are. Otherwise an apostrophe is put before texts"
            " that a spreadsheet would run as a formula.",
        ),
    ] = False

    def params(self) -> dict[str, str]:
        """Return them as parameters of the route."""
        given = {"format": self.format.value, "columns": self.columns}
        return {
            **{name: value for name, value in given.items() if value is not None},
            **({"raw": "true"} if self.raw else {}),
        }


@with_option_groups
def export(
    filters: StatusFilters,
    form: Form,
    where: Where,
    zone: InZone,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="File to write. It is compressed if its name ends with .gz.",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Continue an export to this file that was cut off, if there is one."
        ),
    ] = False,
    verify: Annotated[
        Path | None,
        typer.Option(
            "--verify",
            metavar="FILE",
            help="Check a file against its manifest instead; end with 1 if it differs.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Export all tasks that match to a file.

    They are of one snapshot, newest first. The file is complete if the command ends with 0.
    FILE.manifest.json has the number of its tasks and its SHA-256. An export that is cut off stays
    in FILE.part.
    """
    if verify is not None:
        if output is not None or resume:
            raise typer.BadParameter("--verify: not together with --output or --resume")
        _verify(verify)
        return
    if output is None:
        raise typer.BadParameter("-o: name the file to write")
    if str(output) == "-":
        raise typer.BadParameter(
            "-o: name a file, which is checked before it gets its name; for a pipe, read"
            " /api/v1/audit/export with curl"
        )
    place = where.place()
    if place.url is None:
        raise typer.BadParameter("an export needs a service: give --url or --profile, not --dsn")
    params = {**filters.params(zone.zone(place.tz)), **form.params()}
    try:
        manifest = _export(place.url, place, output, params, resume=resume)
    except (Invalid, Malformed) as problem:
        raise typer.BadParameter(problem.detail) from None
    note(f"{manifest.tasks:,} tasks in {output}, SHA-256 {manifest.sha256}")
    _note_snapshots(len(manifest.parts))


def _export(
    url: str, place: Place, output: Path, params: dict[str, Any], *, resume: bool
) -> ExportManifest:
    """Export to a file. If that is cut off, say how to continue."""
    from audit.client.export_file import ExportFile
    from audit.commands.service_url import export_client_at, naming

    file = ExportFile(output)
    with naming(url), export_client_at(url, place.key(), place.ca_file) as client:
        try:
            return client.export(output, resume=resume, **params)
        except (Unavailable, OSError, KeyboardInterrupt):
            if file.part.exists():
                note(f"{file.part} has what came so far; the command with --resume continues it")
            raise


def _verify(path: Path) -> None:
    from audit.client.export_file import Differs, ExportFile

    try:
        manifest = ExportFile(path).verify()
    except Differs as difference:
        note(str(difference))
        raise typer.Exit(ExitCode.NO) from None
    note(f"{path} is as its manifest says: {manifest.tasks:,} tasks")
    _note_snapshots(len(manifest.parts))


def _note_snapshots(number: int) -> None:
    if number > 1:
        note(f"the export was cut off, so its tasks were read at {number} moments")
