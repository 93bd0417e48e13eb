"""The options that say how a command shows its answer, and how it does."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any

import typer

from audit.commands.output import discard_output
from audit.commands.rendering.records import (
    Column,
    Output,
    Row,
    chosen,
    header_of,
    line_of,
)
from audit.commands.rendering.screen import Color, Look, Screen, look_of_output

if TYPE_CHECKING:
    from audit.commands.rendering.times import Zone

_TABULAR = frozenset({Output.TSV, Output.CSV, Output.TABLE, Output.WIDE})


@dataclass(frozen=True)
class InZone:
    """The option that says in which time zone people read and write times."""

    tz: Annotated[
        str | None,
        typer.Option(
            "--tz",
            metavar="ZONE",
            help="Time zone of tables and of times without an offset, such as Europe/Berlin.",
            show_default="that of the profile or of the machine",
        ),
    ] = None

    def zone(self, default: str | None) -> Zone:
        """Return the time zone: the one of the options, or else the default of a profile."""
        from audit.commands.rendering.times import Zone

        try:
            return Zone(self.tz or default)
        except ValueError as unknown:
            raise typer.BadParameter(f"--tz: {unknown}") from None


@dataclass(frozen=True)
class Show(InZone):
    """The options of all commands that show something."""

    output: Annotated[
        Output | None,
        typer.Option(
            "--output",
            "-o",
            show_default="table on a terminal, tsv elsewhere",
            help="Form of the output. json is the body that the service returns.",
        ),
    ] = None
    columns: Annotated[
        str | None,
        typer.Option("--columns", metavar="NAMES", help="Columns to show, such as task_id,status."),
    ] = None
    header: Annotated[
        bool | None,
        typer.Option(
            "--header/--no-header",
            help="Whether TSV and CSV begin with the names of the columns.",
            show_default="only CSV",
        ),
    ] = None
    color: Annotated[
        Color,
        typer.Option(
            "--color",
            help="When to colour. auto colours on terminals, unless NO_COLOR is set; FORCE_COLOR"
            " colours elsewhere, too.",
        ),
    ] = Color.AUTO
    no_pager: Annotated[
        bool, typer.Option("--no-pager", help="Show long tables without $PAGER.")
    ] = False

    @cached_property
    def form(self) -> Output:
        """The form of the output."""
        if self.output is None:
            return Output.TABLE if sys.stdout.isatty() else Output.TSV
        if self.columns is not None and self.output not in _TABULAR:
            raise typer.BadParameter(f"--columns: {self.output} has no columns")
        return self.output

    @property
    def is_drawn(self) -> bool:
        """Whether people get the drawing of the command, and not columns of their choice."""
        return self.form in {Output.TABLE, Output.WIDE} and self.columns is None

    @property
    def is_for_people(self) -> bool:
        """Whether a table is shown on a terminal."""
        return self.look.width is not None and self.form in {Output.TABLE, Output.WIDE}

    @cached_property
    def look(self) -> Look:
        """What the output can show."""
        return look_of_output(self.color)

    def refuse(self, *forms: Output) -> None:
        """Refuse the forms that a command does not have."""
        if self.form in forms:
            others = ", ".join(form for form in Output if form not in forms)
            raise typer.BadParameter(f"-o {self.form}: this command has only {others}")

    @contextlib.contextmanager
    def screen(self, *, may_page: bool = True) -> Iterator[Screen]:
        """Open standard output. If its reader closes it, the command ends and has succeeded."""
        is_table = self.form in {Output.TABLE, Output.WIDE}
        try:
            with Screen(self.look, may_page=may_page and is_table and not self.no_pager) as screen:
                yield screen
                screen.flush()
        except BrokenPipeError:
            discard_output()
            raise typer.Exit from None

    def chosen(self, columns: Sequence[Column[Row]]) -> Sequence[Column[Row]]:
        """Return the columns to show."""
        try:
            return chosen(columns, self.columns)
        except ValueError as unknown:
            raise typer.BadParameter(f"--columns: {unknown}") from None


class Rows:
    """Writes rows in the form that was asked for, all but JSON, which is one document."""

    def __init__(
        self,
        show: Show,
        screen: Screen,
        columns: Sequence[Column[Any]],
        lines: Callable[[Sequence[Any]], Iterable[str]] | None = None,
    ) -> None:
        """`lines` draws the table for people; without it, the table has the given columns."""
        self._show = show
        self._screen = screen
        self._columns = show.chosen(columns)
        self._began = False
        self._lines = lines if lines is not None and show.is_drawn else self._plain_lines
        self._has_header = show.header if show.header is not None else show.form is Output.CSV

    def write(self, rows: Iterable[tuple[str, Any]]) -> None:
        """Write some rows, each as its JSON text and its value."""
        form, write, data = self._show.form, self._screen.write, self._show.look.data
        if form in {Output.TABLE, Output.WIDE}:
            values = [value for _, value in rows]
            for line in self._lines(values) if values else ():
                write(line + "\n")
            return
        if form in {Output.TSV, Output.CSV} and self._has_header:
            write(header_of(form, self._columns))
            self._has_header = False
        for text, value in rows:
            match form:
                case Output.NDJSON:
                    write(data(text + "\n"))
                case Output.IDS:
                    write(f"{value['task_id']}\n")
                case _:
                    write(data(line_of(form, self._columns, value)))

    def _plain_lines(self, rows: Sequence[Any]) -> Iterator[str]:
        from audit.commands.rendering.table import Cell, table

        inert = self._show.look.inert
        cells = [
            [
                Cell(inert(column.text(row) or "-"), right=column.is_number)
                for column in self._columns
            ]
            for row in rows
        ]
        names = [column.name.upper() for column in self._columns]
        is_cut = self._show.form is not Output.WIDE
        lines = table(names, cells, self._show.look, is_cut=is_cut)
        if self._began:
            next(lines)
        self._began = True
        yield from lines
