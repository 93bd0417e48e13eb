"""What a request may ask and record, and what an answer holds. All input is judged here."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Annotated, Any, Final, Self, TypeVar
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
from pydantic_core import CoreSchema, core_schema, from_json

from audit.errors import Conflict, FieldError, Forbidden, Invalid, Malformed
from audit.states import State

MAX_TASKS_IN_ARRAY: Final = 1000
MAX_OFFSET: Final = 2**63 - 1
DEFAULT_FAILURE_DAYS: Final = 7

# --- the kinds of value ---------------------------------------------------------------------------

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE | re.ASCII)
_RFC3339 = re.compile(
    r"\d{4}-\d\d-\d\d[Tt ]([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,6})?"
    r"([Zz]|[+-](0\d|1[0-5]):[0-5]\d)",
    re.ASCII,
)
_WHOLE = re.compile(r"-?[0-9]{1,20}", re.ASCII)
_LONGEST_NAME = 255
_STATES: Final[Mapping[str, State]] = {state: state for state in State}
_FIRST_CREATED_AT = datetime(2000, 1, 1, tzinfo=UTC)


def _uuid(value: object) -> object:
    if isinstance(value, UUID) or (isinstance(value, str) and _UUID.fullmatch(value)):
        return value
    raise ValueError("must be a UUID such as 7d9f1c9e-0c3f-4d0e-9a63-6b6f0b7c2d11")


def _timestamp(value: object) -> datetime:
    if isinstance(value, str):
        if not _RFC3339.fullmatch(value):
            hint = "; write its + as %2B in a URL" if " " in value[19:] else ""
            raise ValueError(
                "must be an RFC 3339 time with an offset and at most six decimals, "
                f"such as 2026-11-23T08:00:00.25Z{hint}"
            )
        value = datetime.fromisoformat(value.upper())
    elif not isinstance(value, datetime) or value.utcoffset() is None:
        raise ValueError("must be a time with an offset")
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError("must be in the years 1 to 9999, in UTC") from None


def _not_before_2000(value: datetime) -> datetime:
    if value < _FIRST_CREATED_AT:
        raise ValueError("must not be before 2000-01-01T00:00:00Z")
    return value


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


def _json_object(value: object) -> str:
    """JSON text of an object, as it was given."""
    if isinstance(value, Mapping):
        try:
            value = json.dumps(value, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as unfit:
            raise ValueError(f"must be a JSON object: {unfit}") from None
    if not isinstance(value, str):
        raise ValueError("must be a JSON object")
    refuse_nul(value.encode())
    try:
        parsed = from_json(value, allow_inf_nan=False)
    except ValueError:
        raise Malformed("outcome is not JSON") from None
    if not isinstance(parsed, dict):
        raise ValueError("must be a JSON object")
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
    Field(max_length=100, json_schema_extra={"uniqueItems": True}),
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
    cursor: Annotated[str, StringConstraints(min_length=1, max_length=200)] | None = None
    """The `next_cursor` of a page: continue after it, with the same filters."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.days is not None and (self.since or self.until):
            raise ValueError("days: not together with since or until")
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
            self.days,
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
    """Tasks created in the last `days` times 24 hours; 7 if no `since` or `until` is given."""

    @model_validator(mode="before")
    @classmethod
    def _last_week(cls, given: dict[str, Any]) -> dict[str, Any]:
        if given.get("days") is None and not given.get("since") and not given.get("until"):
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

# --- what may be recorded -------------------------------------------------------------------------


class TaskChange(_Model):
    """What an open task may still take on."""

    status: Status = State.PENDING
    """Moves forwards only: pending, approved, executing, then one of the terminal states. A new
    task is `pending` if no status is given."""
    approved_at: Timestamp | None = None
    """Set by the server at the transition if it is not given."""
    completed_at: Timestamp | None = None
    """Set by the server at the transition to a terminal state if it is not given."""
    services_touched: Services = Field(default_factory=list)
    """Names of services, without duplicates; the order is kept."""
    outcome: Outcome | None = None
    """Its member `action_type` is the intent of the task: text of at most 255 characters."""
    estimated_resources: JsonObject | None = None
    actual_resources: JsonObject | None = None
    external_ai_used: JsonObject | None = None
    error_message: Annotated[str, StringConstraints(strict=True)] | None = None
    suggestions: list[Any] | None = None


class NewTask(TaskChange):
    """A task as it is first recorded."""

    task_id: TaskId | None = None
    """The idempotency key; made by the server if it is not given."""
    project_id: TaskId | None = None
    request_text: RequestText
    created_by: Name | None = None
    created_at: CreatedAt | None = None
    """From 2000-01-01 to 24 hours ahead of the database's clock, which is the default."""


_FIXED: Final = (*(set(NewTask.model_fields) - set(TaskChange.model_fields)), "recorded_at")
_ONE_OR_MANY: TypeAdapter[list[NewTask]] = TypeAdapter(
    Annotated[list[NewTask], Field(max_length=MAX_TASKS_IN_ARRAY)]
)
_MANY: TypeAdapter[list[NewTask]] = TypeAdapter(list[NewTask])


@dataclass(frozen=True, slots=True)
class TaskBatch:
    """Tasks that are judged and ready to be recorded.

    `text` is a JSON array of them, as it was sent: what was a number of thirty digits still is.
    `labels` stand before a member's name in errors, one for each task.
    """

    text: str
    labels: Sequence[str]


def parse_tasks(body: bytes, project_id: UUID | None = None) -> TaskBatch:
    """Judge a JSON object or an array of 1 to 1,000 of them; all of one project, if it is given.

    Raises:
        Malformed: it is not JSON, or has a NUL character.
        Forbidden: a task is of another project.
        Invalid: it names every member that is wrong, those of an array as `3.status`.
    """
    refuse_nul(body)
    with judging():
        if body.lstrip(b" \t\r\n")[:1] != b"[":
            one = NewTask.model_validate_json(body)
            _hold_to_project([one], [""], project_id)
            return TaskBatch(f"[{body.decode()}]", ("",))
        tasks = _ONE_OR_MANY.validate_json(body)
    if not tasks:
        raise Invalid("the array is empty", errors=[{"field": "", "detail": "must hold a task"}])
    labels = [f"{position}." for position in range(len(tasks))]
    _hold_to_project(tasks, labels, project_id)
    return TaskBatch(body.decode(), labels)


def parse_lines(lines: Sequence[tuple[int, bytes]], project_id: UUID | None = None) -> TaskBatch:
    """Judge lines of NDJSON, each with its number; errors name the line as `line 4: status`.

    Raises:
        Malformed: a line is not JSON, or has a NUL character.
        Forbidden: a task is of another project than the one given.
        Invalid: a line is not a task.
    """
    labels = [f"line {number}: " for number, _ in lines]
    errors: list[FieldError] = []
    tasks: list[NewTask] = []
    # Each by itself: joined first, two lines that are not JSON could make up two tasks.
    for (_, line), label in zip(lines, labels, strict=True):
        refuse_nul(line, label)
        try:
            tasks.append(NewTask.model_validate_json(line))
        except ValidationError as refused:
            errors += _problem(refused, label).errors or []
    if errors:
        raise Invalid(_summary(errors), errors=errors)
    _hold_to_project(tasks, labels, project_id)
    return TaskBatch(f"[{b','.join(line for _, line in lines).decode()}]", labels)


def _hold_to_project(
    tasks: Sequence[NewTask], labels: Sequence[str], project_id: UUID | None
) -> None:
    if project_id is None:
        return
    errors: list[FieldError] = [
        {"field": f"{label}project_id", "detail": f"must be {project_id}, which the key is for"}
        for task, label in zip(tasks, labels, strict=True)
        if task.project_id != project_id
    ]
    if errors:
        raise Forbidden(_summary(errors), errors=errors)


def batch_of(tasks: Iterable[NewTask | Mapping[str, Any]]) -> TaskBatch:
    """Judge tasks given as Python objects.

    Raises:
        Invalid: it names every member that is wrong.
    """
    with judging():
        judged = _MANY.validate_python(list(tasks))
    text = _MANY.dump_json(judged, exclude_unset=True).decode()
    return TaskBatch(text, [f"{position}." for position in range(len(judged))])


def parse_change(body: bytes) -> str:
    """Judge a JSON object of what changes; return it as it was sent.

    Raises:
        Malformed: it is not JSON, or has a NUL character.
        Conflict: it has a member that never changes.
        Invalid: it names every member that is wrong.
    """
    refuse_nul(body)
    with judging():
        given = _CHANGE.validate_json(body)
        fixed = sorted(given.keys() & set(_FIXED))
        if fixed:
            raise Conflict(f"these may not change once a task is recorded: {', '.join(fixed)}")
        TaskChange.model_validate_json(body)
    return body.decode()


_CHANGE: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])


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
    total: int
    """All tasks that match all the filters, in the same snapshot as the page."""
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
    total: int
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
        cursor = "null" if self.next_cursor is None else f'"{self.next_cursor}"'
        return (
            f'{{"tasks":{self.tasks_json},"total":{self.total},"limit":{self.limit},'
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

#: Millions, in a body of unknown members, would take all memory.
_MOST_ERRORS = 10_000
_NUL_ESCAPE = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


def refuse_nul(text: bytes, label: str = "") -> None:
    """Raise Malformed if JSON text has a NUL character, which PostgreSQL cannot store."""
    if b"\0" in text or (b"\\u0000" in text and _NUL_ESCAPE.search(text)):
        raise Malformed(f"{label}a NUL character is not allowed in JSON text")


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
    refused: ValidationError, label: str = "", unknown: str = "unknown", depth: int | None = None
) -> Invalid:
    """Name each value refused by its place, of which at most `depth` parts are told."""
    if refused.error_count() > _MOST_ERRORS:
        raise Invalid(
            f"{label}{refused.error_count()} values are wrong: too many to name"
        ) from None
    errors: list[FieldError] = []
    for error in refused.errors(include_url=False, include_input=False):
        if error["type"] == "json_invalid":
            raise Malformed(f"{label}not JSON: {error['ctx']['error']}") from None
        field = ".".join(str(part) for part in error["loc"][:depth])
        detail = error["msg"].removeprefix("Value error, ")
        if error["type"] == "extra_forbidden":
            detail = unknown
        if not error["loc"] and ": " in detail:
            field, _, detail = detail.partition(": ")
        place = label + field if field else label.rstrip(": ")
        errors.append({"field": place, "detail": detail})
    return Invalid(_summary(errors), errors=errors)


def _summary(errors: Sequence[FieldError]) -> str:
    field, detail = errors[0]["field"], errors[0]["detail"]
    first = f"{field}: {detail}" if field else detail
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return first + more
