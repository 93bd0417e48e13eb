"""What a request may ask and record, and what an answer holds. All input is judged here."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Annotated, Any, Final, Literal, Self, TypeVar
from uuid import UUID

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

from audit.errors import Conflict, FieldError, Forbidden, Invalid, Malformed, Problem
from audit.history import json_text
from audit.history.json_text import Reader
from audit.history.states import State
from audit.settings import Settings

#: The limits where no settings are at hand.
DEFAULTS: Final = Settings.model_construct()

MAX_TASKS_IN_ARRAY: Final = 1000
MAX_OFFSET: Final = 2**63 - 1
DEFAULT_FAILURE_DAYS: Final = 7

# --- the kinds of value ---------------------------------------------------------------------------

_OUT_OF_YEARS = "must be in the years 1 to 9999, in UTC"
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE | re.ASCII)
_RFC3339 = re.compile(
    r"\d{4}-\d\d-\d\d[Tt ]([01]\d|2[0-3]):[0-5]\d:([0-5]\d|60)(\.\d{1,9})?"
    r"([Zz]|[+-]([01]\d|2[0-3]):?[0-5]\d)",
    re.ASCII,
)
#: The times that PostgreSQL reads as this module does. It rounds more decimals instead of cutting
#: them, and knows no offsets of 16 hours.
_PLAIN_TIME = re.compile(
    r".{10}[Tt ]..:..:[0-5]\d(\.\d{1,6})?([Zz]|[+-](0\d|1[0-5]):?\d\d)", re.ASCII
)
_WHOLE = re.compile(r"-?[0-9]{1,20}", re.ASCII)
_SPAN = re.compile(r"([0-9]{1,6})([mhdw])", re.ASCII)
_UNITS: Final = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_LONGEST_NAME = 255
_SPACE: Final = " \t\r\n"
_MOST_SERVICES = 100
_STATES: Final[Mapping[str, State]] = {state: state for state in State}
_FIRST_CREATED_AT = datetime(2000, 1, 1, tzinfo=UTC)


def _uuid(value: object) -> object:
    if isinstance(value, UUID) or (isinstance(value, str) and _UUID.fullmatch(value)):
        return value
    raise ValueError("must be a UUID such as 7d9f1c9e-0c3f-4d0e-9a63-6b6f0b7c2d11")


def _timestamp(value: object) -> datetime:
    if isinstance(value, str):
        match = _RFC3339.fullmatch(value)
        if not match:
            hint = "; write its + as %2B in a URL" if " " in value[19:] else ""
            raise ValueError(
                "must be an RFC 3339 time with an offset and at most nine decimals, "
                f"such as 2026-11-23T08:00:00.25Z{hint}"
            )
        if match[2] == "60":
            return _after_leap_second(value)
        # It cuts the decimals after the sixth.
        value = datetime.fromisoformat(value.upper())
    elif not isinstance(value, datetime) or value.utcoffset() is None:
        raise ValueError("must be a time with an offset")
    if value.tzinfo is UTC:
        return value
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError(_OUT_OF_YEARS) from None


def _after_leap_second(value: str) -> datetime:
    """Return the time that POSIX and PostgreSQL give to a leap second: that of the next second."""
    try:
        before = datetime.fromisoformat(f"{value[:17]}59{value[19:]}".upper()).astimezone(UTC)
        if (before.hour, before.minute) != (23, 59):
            raise ValueError("the second 60 is a leap second, which only 23:59 in UTC can have")
        return before + timedelta(seconds=1)
    except OverflowError:
        raise ValueError(_OUT_OF_YEARS) from None


def _not_before_2000(value: datetime) -> datetime:
    if value < _FIRST_CREATED_AT:
        raise ValueError("must not be before 2000-01-01T00:00:00Z")
    return value


def _at_most_a_hundred(names: object) -> object:
    """Before each name is validated: an error for each of a million would take all memory."""
    if isinstance(names, list) and len(names) > _MOST_SERVICES:
        raise ValueError(f"must have at most {_MOST_SERVICES} names, not {len(names)}")
    return names


def _no_duplicates(names: Sequence[str]) -> Sequence[str]:
    if len(set(names)) < len(names):
        raise ValueError("must not name a service twice")
    return names


def _intent_is_a_name(outcome: dict[str, Any]) -> dict[str, Any]:
    intent = outcome.get("action_type")
    if intent is not None and not (isinstance(intent, str) and len(intent) <= _LONGEST_NAME):
        raise ValueError(f"action_type must be text of at most {_LONGEST_NAME} characters, or null")
    return outcome


@dataclass(frozen=True)
class _Whole:
    """An int, or its decimal digits in a URL; never a bool, a float or a padded string."""

    lowest: int
    highest: int

    def judge(self, value: object) -> int:
        if isinstance(value, str) and _WHOLE.fullmatch(value):
            value = int(value)
        if type(value) is not int or not self.lowest <= value <= self.highest:
            raise ValueError(f"must be a whole number from {self.lowest} to {self.highest}")
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.judge)

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        return {"type": "integer", "minimum": self.lowest, "maximum": self.highest}


@dataclass(frozen=True)
class _Last:
    """A span of time such as `15m`, `24h`, `7d` or `8w`."""

    highest_days: int

    def judge(self, value: object) -> timedelta:
        found = _SPAN.fullmatch(value) if isinstance(value, str) else None
        span = timedelta(**{_UNITS[found[2]]: int(found[1])}) if found else timedelta()
        if not timedelta() < span <= timedelta(days=self.highest_days):
            raise ValueError(
                f"must be a span such as 15m, 24h, 7d or 8w, and at most {self.highest_days}d"
            )
        return span

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.judge)

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        return {"type": "string", "pattern": "^[0-9]{1,6}[mhdw]$"}


def _total(value: object) -> object:
    if value not in ("exact", "none"):
        raise ValueError("must be exact or none")
    return value


def _json_object(value: object) -> str:
    """JSON text of an object, as it was given."""
    reader = Reader(DEFAULTS)
    try:
        if isinstance(value, Mapping):
            return reader.write(dict(value))[0]
        if not isinstance(value, str) or not isinstance(reader.read(value.strip(_SPACE)), dict):
            raise ValueError("must be a JSON object")
    except Malformed as refused:
        raise Malformed(f"outcome: {refused.detail}") from None
    except Invalid as refused:
        raise ValueError(refused.detail) from None
    return value


def _state(value: object) -> State:
    state = _STATES.get(value) if isinstance(value, str) else None
    if state is None:
        raise ValueError(f"must be one of {', '.join(State)}")
    return state


TaskId = Annotated[UUID, BeforeValidator(_uuid)]
Timestamp = Annotated[
    datetime,
    BeforeValidator(_timestamp, json_schema_input_type=str),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]
CreatedAt = Annotated[Timestamp, AfterValidator(_not_before_2000)]
Status = Annotated[State, BeforeValidator(_state)]
Name = Annotated[str, StringConstraints(strict=True, min_length=1, max_length=_LONGEST_NAME)]
RequestText = Annotated[str, StringConstraints(strict=True, min_length=1, max_length=65_536)]
Services = Annotated[
    list[Name],
    Field(max_length=_MOST_SERVICES, json_schema_extra={"uniqueItems": True}),
    BeforeValidator(_at_most_a_hundred),
    AfterValidator(_no_duplicates),
]
JsonObject = dict[str, Any]
_INTENT_SCHEMA: Final[dict[str, Any]] = {
    "properties": {"action_type": {"type": ["string", "null"], "maxLength": _LONGEST_NAME}}
}
Outcome = Annotated[
    JsonObject,
    Field(json_schema_extra=_INTENT_SCHEMA),
    AfterValidator(_intent_is_a_name),
]

TimeAdapter: TypeAdapter[datetime] = TypeAdapter(Timestamp)


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


# --- what may be asked ----------------------------------------------------------------------------

_SEVERAL: Final = frozenset({"status", "service", "intent"})


class NoParams(_Model):
    """The parameters of a route that takes none."""

    @field_validator("*", mode="before")
    @classmethod
    def _once(cls, value: object, info: ValidationInfo) -> object:
        if info.field_name in _SEVERAL:
            if not isinstance(value, str | tuple | list):
                raise ValueError("must be text, or several texts")
            if not value:
                raise ValueError("must not be empty")
            return (value,) if isinstance(value, str) else value
        if isinstance(value, list):
            if len(value) > 1:
                raise ValueError(f"is given {len(value)} times, may be given once")
            return value[0]
        return value


class TaskPath(NoParams):
    """The parameters of a route to one task."""

    task_id: TaskId


class TaskQuery(NoParams):
    """The parameters that all lists share. Filters combine with AND."""

    service: Annotated[tuple[Name, ...], Field(max_length=100)] = ()
    """Matches an element of `services_touched` exactly. Given several times: all of them."""
    intent: Annotated[tuple[Name, ...], Field(max_length=100)] = ()
    """Matches `outcome.action_type` exactly. Given several times: any of them."""
    days: Annotated[int, _Whole(1, 365)] | None = None
    """Tasks created in the last `days` times 24 hours. Not together with `since` or `until`."""
    last: Annotated[timedelta, _Last(365)] | None = None
    """Tasks created in a last span, like `days`: `15m`, `24h`, `7d` or `8w`, at most `365d`. Not
    together with `days`, `since` or `until`."""
    since: Timestamp | None = None
    """Tasks created at or after this RFC 3339 time."""
    until: Timestamp | None = None
    """Tasks created before this RFC 3339 time."""
    created_by: Name | None = None
    """Matches exactly."""
    project_id: TaskId | None = None
    """Matches exactly."""
    outcome: Annotated[str | None, BeforeValidator(_json_object, json_schema_input_type=str)] = None
    """A JSON object that `outcome` contains."""
    limit: Annotated[int, _Whole(1, 1000)] = 100
    """Tasks in a page, at most; 100 if not given."""
    offset: Annotated[int, _Whole(0, MAX_OFFSET)] | None = None
    """Matching tasks to skip; 0 if not given. Not together with `cursor`."""
    total: Annotated[Literal["exact", "none"], BeforeValidator(_total)] = "exact"
    """`none` leaves `total` null and spares the counting; `exact` if not given."""
    cursor: Annotated[str, StringConstraints(min_length=1, max_length=200)] | None = None
    """The `next_cursor` of a page: continue after it, with the same filters."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.days is not None and (self.since or self.until):
            raise ValueError("days: not together with since or until")
        if self.last is not None and (self.days is not None or self.since or self.until):
            raise ValueError("last: not together with days, since or until")
        if self.since and self.until and self.since > self.until:
            raise ValueError("until: must not be before since")
        if self.cursor is not None and self.offset is not None:
            raise ValueError("offset: not together with cursor")
        return self

    @property
    def statuses(self) -> tuple[State, ...]:
        """The states asked for; empty: any."""
        return ()

    @property
    def span(self) -> timedelta | None:
        """How far the window reaches back from the clock; None: it does not move."""
        return self.last if self.days is None else timedelta(days=self.days)

    @property
    def is_counted(self) -> bool:
        """Whether the counts by service, time, state and intent know all the filters."""
        further = (self.created_by, self.project_id, self.outcome)
        return further == (None, None, None) and len(set(self.service)) <= 1

    @cached_property
    def fingerprint(self) -> bytes:
        """What a cursor is bound to: the filters, however ordered; not the page."""
        filters = (
            sorted(set(self.statuses)),
            sorted(set(self.service)),
            sorted(set(self.intent)),
            self.span,
            self.since,
            self.until,
            self.created_by,
            self.project_id,
            self.outcome,
        )
        return hashlib.blake2b(repr(filters).encode("utf-8", "surrogatepass")).digest()


class FailuresQuery(TaskQuery):
    """What `/failures` takes."""

    days: Annotated[int, _Whole(1, 90)] | None = None
    """Tasks created in the last `days` times 24 hours; 7 if no other limit of time is given."""
    last: Annotated[timedelta, _Last(90)] | None = None
    """Tasks created in a last span, like `days`: `15m`, `24h`, `7d` or `8w`, at most `90d`. Not
    together with `days`, `since` or `until`."""

    @model_validator(mode="before")
    @classmethod
    def _last_week(cls, given: dict[str, Any]) -> dict[str, Any]:
        if given.get("days") is None and not any(map(given.get, ("last", "since", "until"))):
            return {**given, "days": DEFAULT_FAILURE_DAYS}
        return given

    @property
    def statuses(self) -> tuple[State, ...]:
        """Failures are the tasks in the state `failed`."""
        return (State.FAILED,)


class AuditQuery(TaskQuery):
    """What `/query` and `/by-service` take."""

    status: Annotated[tuple[Status, ...], Field(max_length=100)] = ()
    """Given several times: any of them."""

    @property
    def statuses(self) -> tuple[State, ...]:
        """The states asked for; empty: any."""
        return self.status


Params = TypeVar("Params", bound=NoParams)
_Validated = TypeVar("_Validated", bound=BaseModel)
#: A batch is encoded for its statement at once, on the event loop.
_BATCH_CHARACTERS: Final = 4 * 1024 * 1024

# --- what may be recorded -------------------------------------------------------------------------


class _TaskFields(_Model):
    """The members that a task may be recorded with, and that may change while it is open."""

    approved_at: Timestamp | None = None
    """Set by the server at the transition if it is not given. Decimals after the sixth are cut."""
    completed_at: Timestamp | None = None
    """Set by the server at the transition to a terminal state if it is not given. Decimals after
    the sixth are cut."""
    services_touched: Services | None = None
    """Names of services, without duplicates; the order is kept."""
    outcome: Outcome | None = None
    """Its member `action_type` is the intent of the task: text of at most 255 characters."""
    estimated_resources: JsonObject | None = None
    actual_resources: JsonObject | None = None
    external_ai_used: JsonObject | None = None
    error_message: Annotated[str, StringConstraints(strict=True)] | None = None
    suggestions: list[Any] | None = None


class TaskChange(_TaskFields):
    """What an open task may still take on. null clears a member."""

    status: Status = State.PENDING
    """Moves forwards only: pending, approved, executing, then one of the terminal states."""


class NewTask(_TaskFields):
    """A task as it is first recorded. null means that a member is not given."""

    status: Status | None = None
    """A new task is `pending` if no status is given."""
    task_id: TaskId | None = None
    """The idempotency key; made by the server if it is not given."""
    project_id: TaskId | None = None
    request_text: RequestText
    created_by: Name | None = None
    created_at: CreatedAt | None = None
    """From 2000-01-01 to 24 hours ahead of the database's clock, which is the default. Decimals
    after the sixth are cut."""


_FIXED: Final = frozenset(NewTask.model_fields) - set(TaskChange.model_fields) | {"recorded_at"}
_MEMBERS: Final[Mapping[type[BaseModel], frozenset[str]]] = {
    model: frozenset(model.model_fields) for model in (NewTask, TaskChange)
}
_IDS: Final = ("task_id", "project_id")
_TIMES: Final = ("created_at", "approved_at", "completed_at")


@dataclass(frozen=True, slots=True)
class TaskBatch:
    """Tasks that are validated and ready to be recorded.

    `text` is a JSON array of them, as it was sent: what was a number of thirty digits still is.
    Only a time that PostgreSQL would read in another way is written anew.
    `labels` stand before a member's name in errors, one for each task; `times` are the
    `created_at` of each, None where it is not given.
    """

    text: str
    labels: Sequence[str]
    times: Sequence[datetime | None]

    def __len__(self) -> int:
        """How many tasks there are."""
        return len(self.labels)


def parse_tasks(
    body: Iterable[bytes], project_id: UUID | None = None, settings: Settings = DEFAULTS
) -> list[TaskBatch]:
    """Validate a JSON object or an array of 1 to 1,000 of them, which comes in pieces.

    With a `project_id`, every task must be of this project.

    Raises:
        Malformed: it is not JSON, or has a NUL character.
        Forbidden: a task is of another project.
        Invalid: it names the members that are wrong, those of an array as `3.status`.
    """
    tasks = TaskCollector(settings, project_id)
    for element in Reader(settings).elements(json_text.texts(body)):
        if len(tasks) == MAX_TASKS_IN_ARRAY:
            raise Invalid(f"the array has over {MAX_TASKS_IN_ARRAY} tasks; send it in parts")
        tasks.add(element.label, element.text, element.value)
    tasks.require_any("the array")
    return tasks.batches()


def parse_lines(
    body: Iterable[bytes], project_id: UUID | None = None, settings: Settings = DEFAULTS
) -> list[TaskBatch]:
    """Validate NDJSON that comes in pieces; errors name the line as `line 4: status`.

    Raises:
        Malformed: a line is not JSON, or has a NUL character.
        Forbidden: a task is of another project than the one given.
        Invalid: a line is not a task, or there are too many.
    """
    tasks = TaskCollector(settings, project_id)
    for number, line in json_text.lines(body):
        if number > settings.max_lines_per_request:
            most = settings.max_lines_per_request
            raise Invalid(f"the body has over {most} lines (max_lines_per_request)")
        if line:
            tasks.add_line(number, line)
    tasks.require_any("the body")
    return tasks.batches()


def batch_of(
    tasks: Iterable[NewTask | Mapping[str, Any]], settings: Settings = DEFAULTS
) -> TaskBatch:
    """Validate tasks given as Python objects.

    Raises:
        Malformed: a text has a NUL character.
        Invalid: it names the members that are wrong, or that JSON cannot say.
    """
    reader = Reader(settings)
    checked = TaskCollector(settings)
    for position, task in enumerate(tasks):
        label = f"{position}."
        try:
            checked.add(label, *_written(task, reader, label))
        except Invalid as refused:
            checked.errors.include(refused)
    checked.require_any("the list")
    return checked.batch()


def parse_change(body: Iterable[bytes], settings: Settings = DEFAULTS) -> str:
    """Validate a JSON object of what changes; return it as it was sent.

    Raises:
        Malformed: it is not JSON, or has a NUL character.
        Conflict: it has a member that never changes.
        Invalid: it names the members that are wrong.
    """
    text = "".join(json_text.texts(body)).strip(_SPACE)
    given = Reader(settings).read(text)
    errors = ErrorList(settings)
    if not isinstance(given, dict):
        raise json_text.refused("", _NO_OBJECT)
    fixed = sorted(given.keys() & _FIXED)
    if fixed:
        raise Conflict(f"these may not change once a task is recorded: {', '.join(fixed)}")
    errors.validate(TaskChange, given)
    errors.check()
    text = _for_postgresql(text, given)
    if "services_touched" in given and given["services_touched"] is None:
        text = json_text.replaced(text, {"services_touched": []})
    return text


def change_of(change: Mapping[str, Any], settings: Settings = DEFAULTS) -> str:
    """Validate a change given as Python objects; like `parse_change`."""
    text, _ = _written(change, Reader(settings), "")
    return parse_change([text.encode()], settings)


_NO_OBJECT: Final = "must be a JSON object"


class TaskCollector:
    """Validates tasks one by one, and collects their texts, or what is wrong with them."""

    def __init__(self, settings: Settings, project_id: UUID | None = None) -> None:
        self.errors = ErrorList(settings)
        self._foreign = ErrorList(settings)
        self._reader = Reader(settings)
        self._project_id = project_id
        self._most = settings.max_tasks_per_request
        self._texts: list[str] = []
        self._labels: list[str] = []
        self._times: list[datetime | None] = []

    def __len__(self) -> int:
        """How many tasks are valid so far."""
        return len(self._texts)

    def require_any(self, what: str) -> None:
        """Raise Invalid if there was no task in `what`, neither good nor bad."""
        if not self._texts and not self.errors.total:
            errors: list[FieldError] = [{"field": "", "detail": "must hold a task"}]
            raise Invalid(f"{what} is empty", errors=errors)

    def add_line(self, number: int, line: bytes) -> None:
        """Validate a task that stands on a line by itself."""
        label = f"line {number}: "
        text = json_text.line_text(line, label)
        try:
            value = self._reader.read(text, label)
        except Invalid as refused:
            self.errors.include(refused)
        else:
            self.add(label, text, value)

    def add(self, label: str, text: str, value: Any) -> None:
        """Validate a task that was read from a text."""
        task = self.errors.validate(NewTask, value, label)
        if task is None:
            return
        if self._project_id is not None and task.project_id != self._project_id:
            detail = f"must be {self._project_id}, which the key is for"
            self._foreign.add(f"{label}project_id", detail)
        if len(self._texts) == self._most:
            raise Invalid(f"the body has over {self._most} tasks (max_tasks_per_request)")
        self._texts.append(_for_postgresql(text, value))
        self._labels.append(label)
        self._times.append(task.created_at)

    def batch(self) -> TaskBatch:
        """Return all tasks together.

        Raises:
            Invalid, Forbidden: a task was not valid.
        """
        self._check()
        return self._part(0, len(self._texts))

    def _check(self) -> None:
        self.errors.check()
        self._foreign.check(Forbidden)

    def batches(self) -> list[TaskBatch]:
        """Return the tasks in parts that a statement each can record; like `batch`."""
        self._check()
        parts = []
        start = size = 0
        for end, text in enumerate(self._texts):
            if end - start == MAX_TASKS_IN_ARRAY or (size and size + len(text) > _BATCH_CHARACTERS):
                parts.append(self._part(start, end))
                start, size = end, 0
            size += len(text)
        return [*parts, self._part(start, len(self._texts))]

    def _part(self, start: int, end: int) -> TaskBatch:
        return TaskBatch(
            f"[{','.join(self._texts[start:end])}]", self._labels[start:end], self._times[start:end]
        )


def _written(task: object, reader: Reader, label: str) -> tuple[str, Any]:
    """Return the JSON text and value of a task or a change; ids and times may be objects."""
    if isinstance(task, NewTask):
        task = {name: getattr(task, name) for name in task.model_fields_set}
    if not isinstance(task, Mapping):
        raise json_text.refused(label, _NO_OBJECT)
    given = dict(task)
    for name in _IDS:
        if isinstance(given.get(name), UUID):
            given[name] = str(given[name])
    for name in _TIMES:
        if isinstance(given.get(name), datetime):
            try:
                given[name] = _timestamp(given[name]).isoformat()
            except ValueError as refused:
                raise json_text.refused(label, str(refused), name) from None
    return reader.write(given, label)


def _for_postgresql(text: str, value: Mapping[str, Any]) -> str:
    """Return the text of an object, with the times that PostgreSQL would read in another way."""
    times = {}
    for name in _TIMES:
        time = value.get(name)
        if time is not None and not _PLAIN_TIME.fullmatch(time):
            times[name] = _timestamp(time).isoformat()
    return json_text.replaced(text, times) if times else text


# --- what an answer holds -------------------------------------------------------------------------


class _Answer(BaseModel):
    """Part of an answer. Later versions may add members, which clients must ignore."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)


class TaskSummary(_Answer):
    """A task as lists show it."""

    task_id: UUID
    status: State
    request_text: str
    services_touched: list[str]
    outcome: JsonObject | None
    created_at: Timestamp
    completed_at: Timestamp | None
    error_message: str | None


class Task(TaskSummary):
    """A task whole."""

    project_id: UUID | None
    created_by: str | None
    recorded_at: Timestamp
    """The database's clock when the task was recorded."""
    approved_at: Timestamp | None
    estimated_resources: JsonObject | None
    actual_resources: JsonObject | None
    external_ai_used: JsonObject | None
    suggestions: list[Any] | None


class TaskPageBody(_Answer):
    """A page of a list, newest first: by `created_at`, then by `task_id`, both descending."""

    tasks: list[TaskSummary]
    total: int | None
    """All tasks that match all the filters, in the same snapshot as the page. null with
    `total=none`."""
    limit: int
    offset: int | None
    """null in the answer to a cursor."""
    next_cursor: str | None
    """null on the last page: the only sign of the end."""


class RecordedBody(_Answer):
    """What came of tasks that were sent."""

    recorded: int
    """How many were new."""
    duplicates: int
    """How many were recorded before, with the same content."""
    task_ids: list[UUID]
    """In the order sent."""


_SUMMARIES: TypeAdapter[list[TaskSummary]] = TypeAdapter(list[TaskSummary])


@dataclass(frozen=True)
class TaskPage:
    """One page of a list. `tasks_json` is a JSON array as PostgreSQL wrote it."""

    tasks_json: str = field(repr=False)
    total: int | None
    """None: it was not asked for."""
    limit: int
    offset: int | None
    next_cursor: str | None
    rows: int
    """How many tasks it has."""

    @cached_property
    def tasks(self) -> list[TaskSummary]:
        """The tasks as objects: newest first, at most `limit`. Parsed when first read."""
        return _SUMMARIES.validate_json(self.tasks_json)

    def to_json(self) -> bytes:
        """Return the body of the answer, shaped like `TaskPageBody`."""
        offset = "null" if self.offset is None else self.offset
        total = "null" if self.total is None else self.total
        cursor = "null" if self.next_cursor is None else f'"{self.next_cursor}"'
        return (
            f'{{"tasks":{self.tasks_json},"total":{total},"limit":{self.limit},'
            f'"offset":{offset},"next_cursor":{cursor}}}'
        ).encode()


@dataclass(frozen=True)
class TaskDocument:
    """One task whole. `json` is a JSON object as PostgreSQL wrote it."""

    json: str = field(repr=False)
    etag: str
    """Its entity tag (RFC 9110, 8.8.3): another state of the task has another one."""

    @cached_property
    def task(self) -> Task:
        """The task as an object. Parsed when first read."""
        return Task.model_validate_json(self.json)

    def __repr__(self) -> str:
        return f"TaskDocument(task_id={str(self.task.task_id)!r}, status={str(self.task.status)!r})"


# --- how a refusal is told ------------------------------------------------------------------------

#: The name of an unknown member may be as long as a task.
_LONGEST_PLACE = 200


class ErrorList:
    """Counts what is wrong with the values of a request, and lists the first."""

    def __init__(self, settings: Settings = DEFAULTS) -> None:
        self._most = settings.max_errors
        self._listed: list[FieldError] = []
        self.total = 0

    def add(self, field: str, detail: str) -> None:
        """Note one more."""
        self.total += 1
        if len(self._listed) < self._most:
            if len(field) > _LONGEST_PLACE:
                field = f"{field[:_LONGEST_PLACE]}…"
            self._listed.append({"field": field, "detail": detail})

    def include(self, refused: Invalid) -> None:
        """Note those of a task that was refused as a whole."""
        for error in refused.errors or []:
            self.add(**error)

    def validate(self, model: type[_Validated], value: Any, label: str = "") -> _Validated | None:
        """Return the value as a model, or None where it is wrong."""
        if not isinstance(value, dict):
            self.add(json_text.place(label), _NO_OBJECT)
            return None
        known = _MEMBERS[model]
        is_known = known.issuperset(value)
        if not is_known:
            # pydantic would make an object of each, of which there may be a hundred thousand.
            for name in value:
                if name not in known:
                    self.add(label + name, "unknown")
            value = {name: value[name] for name in known if name in value}
        try:
            validated = model.model_validate(value)
        except ValidationError as refused:
            if self._is_full:
                self.total += refused.error_count()
                return None
            for error in _errors(refused):
                self.add(json_text.place(label, error["field"]), error["detail"])
            return None
        return validated if is_known else None

    @property
    def _is_full(self) -> bool:
        return len(self._listed) == self._most

    def check(self, kind: type[Problem] = Invalid) -> None:
        """Raise a problem if there was any error."""
        if self.total:
            raise self.problem(kind)

    def problem(self, kind: type[Problem] = Invalid) -> Problem:
        """Return the problem that lists the first errors and names their number."""
        return kind(_summary(self._listed, self.total), errors=self._listed)


@contextmanager
def judging() -> Iterator[None]:
    """Turn pydantic's refusals into Malformed or Invalid."""
    try:
        yield
    except ValidationError as refused:
        raise _problem(refused) from None


def parse_query(model: type[Params], params: Mapping[str, object]) -> Params:
    """Judge the parameters of a URL.

    Raises:
        Malformed: `outcome` is not JSON.
        Invalid: it names every parameter that is wrong, and those that the route takes.
    """
    try:
        return model.model_validate(dict(params))
    except ValidationError as refused:
        known = f"unknown; the parameters here are {', '.join(sorted(model.model_fields))}"
        raise _problem(refused, unknown=known, depth=1) from None


def parse_arguments(model: type[Params], arguments: Mapping[str, object]) -> Params:
    """Validate arguments of a Python program; like `parse_query`."""
    return parse_query(model, {name: _as_given(name, it) for name, it in arguments.items()})


def _as_given(name: str, value: object) -> object:
    """Return an argument in the form of a parameter of a URL, which is a list of values."""
    if name in _SEVERAL and not isinstance(value, str):
        return tuple(value) if isinstance(value, set | frozenset) else value
    return [value]


def task_id_of(value: UUID | str) -> UUID:
    """Return the id of a task.

    Raises:
        Invalid: it is not a UUID or its text.
    """
    return parse_arguments(TaskPath, {"task_id": value}).task_id


def _problem(
    refused: ValidationError, unknown: str = "unknown", depth: int | None = None
) -> Invalid:
    errors = _errors(refused, unknown, depth)
    listed = errors[: DEFAULTS.max_errors]
    return Invalid(_summary(listed, len(errors)), errors=listed)


def _errors(
    refused: ValidationError, unknown: str = "unknown", depth: int | None = None
) -> list[FieldError]:
    """Name each value that was refused by its place, by at most `depth` parts of it."""
    errors: list[FieldError] = []
    for error in refused.errors(include_url=False, include_input=False):
        field = ".".join(str(part) for part in error["loc"][:depth])
        detail = error["msg"].removeprefix("Value error, ")
        if error["type"] == "extra_forbidden":
            detail = unknown
        if not error["loc"] and ": " in detail:
            field, _, detail = detail.partition(": ")
        errors.append({"field": field, "detail": detail})
    return errors


def _summary(listed: Sequence[FieldError], total: int) -> str:
    field, detail = listed[0]["field"], listed[0]["detail"]
    first = f"{field}: {detail}" if field else detail
    if total == 1:
        return first
    shown = "" if total == len(listed) else f"; the first {len(listed)} are listed"
    return f"{first} (and {total - 1} more{shown})"
