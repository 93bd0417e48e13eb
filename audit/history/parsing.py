"""Parses tasks and changes that are to be recorded, from a body, a file or Python objects.

PostgreSQL stores the JSON text as it was sent, so the text is kept next to the value that was
validated. A number of thirty digits keeps its digits. Only a time that PostgreSQL would read
differently is rewritten.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from audit.errors import Conflict, Forbidden, Invalid
from audit.history import json_text, json_values, utf8
from audit.history.json_text import Reader
from audit.history.task import NewTask, TaskChange
from audit.history.validation import NOT_AN_OBJECT, ErrorList, invalid
from audit.history.values import parse_time, time_for_postgresql
from audit.limits import DEFAULTS, Limits

MAX_TASKS_IN_ARRAY: Final = 1000
#: A batch is encoded for its statement in one step, on the event loop.
_BATCH_CHARACTERS: Final = 4 * 1024 * 1024
_FIXED: Final = frozenset(NewTask.model_fields) - set(TaskChange.model_fields) | {"recorded_at"}
_IDS: Final = ("task_id", "project_id")
_TIMES: Final = ("created_at", "approved_at", "completed_at")


@dataclass(frozen=True, slots=True)
class TaskBatch:
    """Validated tasks that one statement records."""

    text: str
    """A JSON array of the tasks."""
    labels: Sequence[str]
    """The label of each task in errors."""
    times: Sequence[datetime | None]
    """The `created_at` of each task; None if it is not given."""

    def __len__(self) -> int:
        """Return the number of tasks."""
        return len(self.labels)


def parse_tasks(
    body: Iterable[bytes], project_id: UUID | None = None, limits: Limits = DEFAULTS
) -> list[TaskBatch]:
    """Validate a JSON object, or an array of 1 to 1,000 of them, that arrives in pieces.

    With a `project_id`, every task must belong to this project.

    Raises:
        Malformed: it is not JSON, or contains a NUL character.
        Forbidden: a task belongs to another project.
        Invalid: it names the members that are wrong, those of an array as `3.status`.
    """
    tasks = TaskCollector(limits, project_id)
    for element in Reader(limits).elements(utf8.texts(body)):
        if len(tasks) == MAX_TASKS_IN_ARRAY:
            raise Invalid(f"the array has over {MAX_TASKS_IN_ARRAY} tasks; send it in parts")
        tasks.add(*element)
    tasks.require_any("the array")
    return tasks.batches()


def parse_lines(
    body: Iterable[bytes], project_id: UUID | None = None, limits: Limits = DEFAULTS
) -> list[TaskBatch]:
    """Validate NDJSON that arrives in pieces; errors name a member as `line 4: status`.

    Raises:
        Malformed: a line is not JSON, or contains a NUL character.
        Forbidden: a task belongs to another project than the one given.
        Invalid: a line is not a task, or there are too many.
    """
    reader = Reader(limits)
    tasks = TaskCollector(limits, project_id)
    for number, line in utf8.lines(body):
        if number > limits.max_lines_per_request:
            most = limits.max_lines_per_request
            raise Invalid(f"the body has over {most} lines (max_lines_per_request)")
        if not line:
            continue
        label = f"line {number}: "
        text = utf8.line_text(line, label)
        try:
            value = reader.read(text, label)
        except Invalid as problem:
            tasks.errors.include(problem)
        else:
            tasks.add(label, text, value)
    tasks.require_any("the body")
    return tasks.batches()


def batch_of(tasks: Iterable[NewTask | Mapping[str, Any]], limits: Limits = DEFAULTS) -> TaskBatch:
    """Validate tasks given as Python objects.

    Raises:
        Malformed: a text contains a NUL character.
        Invalid: it names the members that are wrong, or that JSON does not have.
    """
    reader = Reader(limits)
    valid = TaskCollector(limits)
    for position, task in enumerate(tasks):
        label = f"{position}."
        try:
            valid.add(label, *_written(task, reader, label))
        except Invalid as problem:
            valid.errors.include(problem)
    valid.require_any("the list")
    return valid.batch()


def text_of(task: NewTask | Mapping[str, Any], limits: Limits = DEFAULTS) -> str:
    """Validate one task given as a Python object, and return its JSON text; like `batch_of`."""
    valid = TaskCollector(limits)
    valid.add("", *_written(task, Reader(limits), ""))
    return valid.batch().text[1:-1]


def parse_change(body: Iterable[bytes], limits: Limits = DEFAULTS) -> str:
    """Validate a JSON object with the changes to a task, and return its text.

    Raises:
        Malformed: it is not JSON, or contains a NUL character.
        Conflict: it contains a member that never changes.
        Invalid: it names the members that are wrong.
    """
    text = "".join(utf8.texts(body)).strip(json_text.SPACE)
    change = Reader(limits).read(text)
    if not isinstance(change, dict):
        raise invalid("", NOT_AN_OBJECT)
    fixed = sorted(change.keys() & _FIXED)
    if fixed:
        raise Conflict(f"these may not change once a task is recorded: {', '.join(fixed)}")
    errors = ErrorList(limits)
    errors.validate(TaskChange, change)
    errors.check()
    text = _for_postgresql(text, change)
    if "services_touched" in change and change["services_touched"] is None:
        text = json_text.replaced(text, {"services_touched": []})
    return text


def change_of(change: Mapping[str, Any], limits: Limits = DEFAULTS) -> str:
    """Validate a change given as Python objects; like `parse_change`."""
    text, _ = _written(change, Reader(limits), "")
    return parse_change([text.encode()], limits)


class TaskCollector:
    """Validates tasks one by one, and collects their texts and their errors."""

    def __init__(self, limits: Limits, project_id: UUID | None = None) -> None:
        self.errors = ErrorList(limits)
        self._foreign = ErrorList(limits)
        self._project_id = project_id
        self._most = limits.max_tasks_per_request
        self._texts: list[str] = []
        self._labels: list[str] = []
        self._times: list[datetime | None] = []

    def __len__(self) -> int:
        """Return the number of valid tasks so far."""
        return len(self._texts)

    def require_any(self, what: str) -> None:
        """Raise Invalid if `what` had no task, neither a valid nor an invalid one."""
        if not self._texts and not self.errors.total:
            raise Invalid(f"{what} is empty", errors=[{"field": "", "detail": "must hold a task"}])

    def add(self, label: str, text: str, value: Any) -> None:
        """Validate the value of a task, and collect its text."""
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
        """Return all tasks in one batch.

        Raises:
            Invalid, Forbidden: a task is not valid.
        """
        self._check()
        return self._part(0, len(self._texts))

    def batches(self) -> list[TaskBatch]:
        """Return the tasks in batches that are small enough for one statement each.

        Raises:
            Invalid, Forbidden: a task is not valid.
        """
        self._check()
        parts = []
        start = size = 0
        for end, text in enumerate(self._texts):
            if end - start == MAX_TASKS_IN_ARRAY or (size and size + len(text) > _BATCH_CHARACTERS):
                parts.append(self._part(start, end))
                start, size = end, 0
            size += len(text)
        return [*parts, self._part(start, len(self._texts))]

    def _check(self) -> None:
        self.errors.check()
        self._foreign.check(Forbidden)

    def _part(self, start: int, end: int) -> TaskBatch:
        return TaskBatch(
            f"[{','.join(self._texts[start:end])}]", self._labels[start:end], self._times[start:end]
        )


def _written(task: object, reader: Reader, label: str) -> tuple[str, Any]:
    """Return the JSON text and value of a task or change, whose ids and times may be objects."""
    if isinstance(task, NewTask):
        task = {name: getattr(task, name) for name in task.model_fields_set}
    if not isinstance(task, Mapping):
        raise invalid(label, NOT_AN_OBJECT)
    members = dict(task)
    for name in _IDS:
        if isinstance(members.get(name), UUID):
            members[name] = str(members[name])
    for name in _TIMES:
        if isinstance(members.get(name), datetime):
            try:
                members[name] = parse_time(members[name]).isoformat()
            except ValueError as error:
                raise invalid(label, str(error), name) from None
    return json_values.write(members, reader, label)


def _for_postgresql(text: str, value: Mapping[str, Any]) -> str:
    """Return the text of an object after rewriting the times that PostgreSQL reads differently."""
    times = {}
    for name in _TIMES:
        time = value.get(name)
        if time is not None and (rewritten := time_for_postgresql(time)) is not time:
            times[name] = rewritten
    return json_text.replaced(text, times) if times else text
