"""The parameters of the routes of exports, and the manifest of an export."""

from __future__ import annotations

from datetime import datetime
from functools import cached_property
from typing import Annotated, Any, Final, Literal, Self
from uuid import UUID

from pydantic import BeforeValidator, Field, PlainValidator, model_validator

from audit.history.cursor import decode_export
from audit.history.query import AnyStatus, CursorText, NoParams
from audit.history.task import Output
from audit.history.values import TaskId, whole_number

Format = Literal["ndjson", "csv"]

#: The columns of CSV, as `sql/history/export_csv.sql` makes them.
COLUMNS: Final = (
    "task_id", "status", "created_at_utc", "approved_at_utc", "completed_at_utc",
    "duration_seconds", "recorded_at_utc", "created_by", "project_id", "intent",
    "services_touched", "request_text", "error_message", "outcome", "estimated_resources",
    "actual_resources", "external_ai_used", "suggestions",
)  # fmt: skip
#: Those that hold texts of tasks.
TEXT_COLUMNS: Final = frozenset(
    {"created_by", "intent", "services_touched", "request_text", "error_message"}
)


def _format(value: object) -> object:
    if value not in ("ndjson", "csv"):
        raise ValueError("must be ndjson or csv")
    return value


def _flag(value: object) -> object:
    if value not in ("true", "false"):
        raise ValueError("must be true or false")
    return value == "true"


def _columns(value: object) -> str:
    names = value.split(",") if isinstance(value, str) else [""]
    if unknown := [name for name in names if name not in COLUMNS]:
        raise ValueError(f"there is no column {unknown[0]!r}; there are {', '.join(COLUMNS)}")
    if len(set(names)) < len(names):
        raise ValueError("must not name a column twice")
    return ",".join(names)


class ExportQuery(AnyStatus):
    """The parameters of `/export`."""

    format: Annotated[Format, BeforeValidator(_format)] = "ndjson"
    """`ndjson`: a task per line, as `GET /tasks/{task_id}` returns it. `csv`: a header, and a row
    per task with times in UTC. `ndjson` by default."""
    columns: Annotated[str, PlainValidator(_columns, json_schema_input_type=str)] | None = None
    """The columns of CSV in their order, separated by commas; all by default."""
    raw: Annotated[bool, BeforeValidator(_flag, json_schema_input_type=bool)] = False
    """`true` leaves all cells of CSV as they are. By default, an apostrophe is put before a text
    that a spreadsheet would run as a formula."""
    after: TaskId | None = None
    """The id of the last task of an export that was cut off. This export continues after it."""

    @model_validator(mode="after")
    def _agree_on_format(self) -> Self:
        if self.format != "csv" and (self.columns is not None or self.raw):
            raise ValueError(f"{'columns' if self.columns else 'raw'}: only with format=csv")
        return self

    @cached_property
    def shown(self) -> tuple[str, ...]:
        """The columns of CSV."""
        return COLUMNS if self.columns is None else tuple(self.columns.split(","))

    @property
    def quoted(self) -> list[str]:
        """The columns of CSV whose cells are always quoted.

        Spreadsheets offer to split lines at semicolons and tabs as well, but not quoted cells.
        """
        return [name for name in self.shown if name in TEXT_COLUMNS]


class ExportPath(NoParams):
    """The parameters of the route to one export."""

    export_id: TaskId


class ExportsQuery(NoParams):
    """The parameters of the list of exports."""

    limit: Annotated[int, whole_number(1, 1000)] = 100
    """The largest number of exports in a page; 100 by default."""
    cursor: CursorText | None = None
    """The `next_cursor` of a page. The response continues after that page."""

    def after(self, project_id: UUID | None) -> tuple[datetime, UUID] | tuple[None, None]:
        """Return the end and the id of the export after which the page begins.

        Raises:
            Invalid: this service did not make the cursor, or made it for another project.
        """
        return (None, None) if self.cursor is None else decode_export(self.cursor, project_id)


class Manifest(Output):
    """What an export contains, and how to check that a file is complete."""

    export_id: UUID
    filter: dict[str, Any]
    """The filters, with the time that `days` and `last` meant."""
    format: Format
    columns: list[str] | None
    """The columns of CSV; null for NDJSON."""
    raw: bool | None
    """Whether cells of CSV were left as they are; null for NDJSON."""
    after: UUID | None
    """The task after which the export begins; null if it begins with the newest one."""
    snapshot: str
    """What was visible to the export: `pg_current_snapshot()` of PostgreSQL."""
    taken_at: datetime
    """The time of the snapshot."""
    ended_at: datetime
    tasks: Annotated[int, Field(ge=0)]
    """How many tasks were sent."""
    bytes: Annotated[int, Field(ge=0)]
    """How many bytes were sent, before compression."""
    sha256: str
    """The SHA-256 of these bytes in hexadecimal digits."""
    first_task: UUID | None
    """The id of the newest task; null if it is not known."""
    last_task: UUID | None
    """The id of the oldest task; null if it is not known."""
    neutralised: int | None
    """How many cells begin with an apostrophe that the task does not have; null if not known."""
    complete: bool
    """Whether all tasks were sent."""
    by: str | None
    """The API key, or the subject of the token; null if the service requires none."""
    version: str
    """The version of the service."""


class ManifestPage(Output):
    """A page of manifests, of the export that ended last first."""

    exports: list[Manifest]
    next_cursor: str | None
    """null on the last page, and only there."""
