"""What each method of the clients sends, and what it returns."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any, Final, Generic, Protocol, TypeVar
from urllib.parse import quote, urlencode
from uuid import UUID

from pydantic import BaseModel
from pydantic_core import from_json

from audit.client.models import Caller, ChangesPage, Task, TaskPage
from audit.client.wire import Call, Reply, Steps, Wire
from audit.errors import BodyTooLarge, Invalid, Problem
from audit.history import json_values
from audit.history.events import HistoryBody, TaskEvent
from audit.history.json_text import Reader
from audit.history.parsing import MAX_TASKS_IN_ARRAY, change_of, text_of
from audit.history.statistics_body import Durations, Facets, Histogram
from audit.history.task import NewTask, RecordedBody, TaskSummary
from audit.limits import HIGHEST

#: The limit of the characters of a request that records many tasks, unless one task is longer.
_BATCH_CHARACTERS: Final = 1024 * 1024
#: Of the pages that are read one after the other.
_LONGEST_PAGE: Final = 1000
#: Types of a parameter with several values.
_SEVERAL: Final = (list, tuple, set, frozenset)

Body = TypeVar("Body", bound=BaseModel)
Item = TypeVar("Item")


class HasCursor(Protocol):
    """A page of a list."""

    @property
    def next_cursor(self) -> str | None:
        """None on the last page, and only there."""


Page = TypeVar("Page", bound=HasCursor)


@dataclass(frozen=True, slots=True)
class Listing(Generic[Item, Page]):
    """A list that is read page by page."""

    path: str
    params: Mapping[str, Any]
    read: Callable[[Reply], Page]
    items: Callable[[Page], Sequence[Item]]
    crawl: Mapping[str, Any] = field(default_factory=dict)
    """Parameters for those who read all pages."""

    def first(self) -> Call[Page]:
        """Return the call for the first page."""
        return _get(self.path, self.params, self.read)

    def page(self, cursor: str | None) -> Call[Page]:
        """Return the call for the page after a cursor, for those who read all pages."""
        params = {"limit": _LONGEST_PAGE, **self.params, **self.crawl}
        if cursor is not None:
            params |= {"cursor": cursor, "offset": None}
        return _get(self.path, params, self.read, is_kept=False)

    def total(self) -> Call[int]:
        """Return the call for the number of items."""
        return _get(self.path, {**self.params, "limit": 1}, _total)


Tasks = Listing[TaskSummary, TaskPage]
Events = Listing[TaskEvent, HistoryBody]


def failures(params: Mapping[str, Any]) -> Tasks:
    """List the failed tasks."""
    return _tasks("/failures", params)


def by_service(service_name: str, params: Mapping[str, Any]) -> Tasks:
    """List the tasks that have touched a service."""
    return _tasks(f"/by-service/{_segment(service_name)}", params)


def query(params: Mapping[str, Any]) -> Tasks:
    """List the tasks that match."""
    return _tasks("/query", params)


def history(task_id: UUID | str) -> Events:
    """List the events of a task."""
    path = f"/tasks/{_segment(str(task_id))}/history"
    return Listing(path, {}, partial(_model, HistoryBody), lambda page: page.events)


def task(task_id: UUID | str) -> Call[Task]:
    """Get one task."""
    return _get(f"/tasks/{_segment(str(task_id))}", {}, _task)


def changes(params: Mapping[str, Any], position: int | None, wait: int) -> Call[ChangesPage]:
    """Get the changes from a position on, or wait some seconds for one. None: from now on."""
    given = {**params, "position": position, "wait": wait}
    return _get("/changes", given, partial(_model, ChangesPage), is_kept=False)


def histogram(params: Mapping[str, Any]) -> Call[Histogram]:
    """Count tasks by time and state."""
    return _get("/statistics/histogram", params, partial(_model, Histogram))


def facets(names: Sequence[str], params: Mapping[str, Any]) -> Call[Facets]:
    """Count tasks by the values of members."""
    return _get("/statistics/facets", {**params, "facet": names}, partial(_model, Facets))


def durations(params: Mapping[str, Any]) -> Call[Durations]:
    """Measure how long tasks took."""
    return _get("/statistics/durations", params, partial(_model, Durations))


def export(params: Mapping[str, Any]) -> Call[None]:
    """Export tasks. The body of the response is read by others."""
    return _get("/export", params, _read_elsewhere, is_kept=False)


def export_params(params: Mapping[str, Any]) -> dict[str, str | list[str]]:
    """Return the parameters of an export as texts, without those that are None."""
    given: dict[str, str | list[str]] = {}
    for name, value in params.items():
        if name == "raw":
            given |= {"raw": "true"} if value else {}
        elif name == "columns" and value is not None and not isinstance(value, str):
            given["columns"] = ",".join(value)
        elif isinstance(value, _SEVERAL):
            given |= {name: [_text(name, each) for each in value]} if value else {}
        elif value is not None:
            given[name] = _text(name, value)
    return given


def export_manifest(export_id: str) -> Call[dict[str, Any]]:
    """Get what the service has recorded of an export."""
    return _get(f"/exports/{_segment(export_id)}", {}, _object, is_kept=False)


def whoami() -> Call[Caller]:
    """Get whom the key belongs to."""
    return _get("/whoami", {}, partial(_model, Caller), is_kept=False)


def get_text(path: str, params: Mapping[str, Any]) -> Call[str]:
    """Get the body of a route as text. `path` begins below `/api/v1/audit`."""
    return _get(path, params, lambda reply: reply.body.decode(), is_kept=False)


def record_json(wire: Wire, body: bytes, labels: Sequence[str]) -> Steps[RecordedBody]:
    """Record the JSON text of an array of tasks, each with a task_id and a label for errors.

    If a request is too large for the service or a proxy, its tasks are sent in two halves.

    Raises:
        BodyTooLarge: one task by itself is too large.
    """
    if len(body) < wire.too_large or len(labels) == 1:
        try:
            return (yield from wire.exchange(_record(body)))
        except BodyTooLarge:
            if len(labels) == 1:
                raise BodyTooLarge(
                    f"{labels[0]}the task takes a request of {len(body):,} bytes, which is too"
                    f" large for {wire.url} or a proxy before it (413)"
                ) from None
            wire.too_large = min(wire.too_large, len(body))
    texts = [task.text for task in Reader(HIGHEST).elements([body.decode()])]
    middle = len(texts) // 2
    first = yield from record_json(wire, _array(texts[:middle]), labels[:middle])
    second = yield from record_json(wire, _array(texts[middle:]), labels[middle:])
    return sum_of([first, second])


def record(wire: Wire, task: NewTask | Mapping[str, Any]) -> Steps[RecordedBody]:
    """Record a task. If it has no id, it gets one, so that it can be sent again."""
    return record_json(wire, _array([text_of(_with_id(task), HIGHEST)]), [""])


def one_of(
    task: NewTask | Mapping[str, Any] | None, members: Mapping[str, Any]
) -> NewTask | Mapping[str, Any]:
    """Return the task that is given as one, or by its members."""
    if task is not None and members:
        raise Invalid("give a task, or the members of one")
    return members if task is None else task


class Batches:
    """Collects tasks until there are enough for a request."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._texts: list[str] = []
        self._size = 0
        self._sent = 0

    def add(self, task: NewTask | Mapping[str, Any]) -> Steps[RecordedBody] | None:
        """Add a task. If there are enough before it, return the steps that record those.

        Raises:
            Invalid: the task is not valid; it names the position.
        """
        try:
            text = text_of(_with_id(task), HIGHEST)
        except Problem as problem:
            position = self._sent + len(self._texts)
            raise type(problem)(
                f"task {position}: {problem.detail}", errors=problem.errors
            ) from None
        is_full = (
            len(self._texts) == MAX_TASKS_IN_ARRAY or self._size + len(text) > _BATCH_CHARACTERS
        )
        full = self.rest() if is_full else None
        self._texts.append(text)
        self._size += len(text)
        return full

    def rest(self) -> Steps[RecordedBody] | None:
        """Return the steps that record the tasks that are left; None if there are none."""
        if not self._texts:
            return None
        texts, self._texts, self._size = self._texts, [], 0
        labels = [f"task {self._sent + at}: " for at in range(len(texts))]
        self._sent += len(texts)
        return record_json(self._wire, _array(texts), labels)


def sum_of(parts: Sequence[RecordedBody]) -> RecordedBody:
    """Return the result of several requests as one."""
    return RecordedBody(
        recorded=sum(part.recorded for part in parts),
        duplicates=sum(part.duplicates for part in parts),
        task_ids=[task_id for part in parts for task_id in part.task_ids],
    )


def _record(body: bytes) -> Call[RecordedBody]:
    return Call("POST", "/tasks", partial(_model, RecordedBody), body)


def _array(texts: Sequence[str]) -> bytes:
    return f"[{','.join(texts)}]".encode()


def update(
    task_id: UUID | str, change: Mapping[str, Any], if_match: str | None = None
) -> Call[Task]:
    """Change a task. With `if_match`, only in the state that has this entity tag."""
    return update_text(task_id, change_of(change, HIGHEST).encode(), if_match)


def update_text(task_id: UUID | str, body: bytes, if_match: str | None = None) -> Call[Task]:
    """Change a task by the JSON text of a change."""
    path = f"/tasks/{_segment(str(task_id))}"
    headers = {} if if_match is None else {"If-Match": if_match}
    return Call(
        "PATCH", path, _task, body, headers, settle=partial(_settle, history(task_id), None)
    )


def _settle(events: Events, cursor: str | None, request_id: str) -> Call[Any]:
    """Look for an event of the request. If there is one, the change was made."""

    def read(reply: Reply) -> Call[Any] | None:
        page = events.read(reply)
        if any(event.request_id == request_id for event in page.events):
            return task(page.task_id)
        if page.next_cursor is not None:
            return _settle(events, page.next_cursor, request_id)
        return None

    call = events.page(cursor)
    return Call(call.method, call.path, read)


def new_task_id() -> UUID:
    """Return a UUID of version 7: ordered by time, so that the database finds neighbours."""
    milliseconds = time.time_ns() // 1_000_000 & (1 << 48) - 1
    fields = milliseconds << 16 | 0x7000 | secrets.randbits(12)
    return UUID(int=fields << 64 | 0b10 << 62 | secrets.randbits(62))


def _with_id(task: NewTask | Mapping[str, Any]) -> NewTask | Mapping[str, Any]:
    if isinstance(task, NewTask):
        return task if task.task_id else task.model_copy(update={"task_id": new_task_id()})
    if isinstance(task, Mapping) and task.get("task_id") is None:
        return {**task, "task_id": new_task_id()}
    return task


def _tasks(path: str, params: Mapping[str, Any]) -> Tasks:
    return Listing(path, params, _page, lambda page: page.tasks, {"total": "none"})


def _get(
    path: str,
    params: Mapping[str, Any],
    read: Callable[[Reply], Any],
    *,
    is_kept: bool = True,
) -> Call[Any]:
    """Return a call; a parameter that is None is not sent, and several values are sent each."""
    pairs = [
        (name, _text(name, value))
        for name, values in params.items()
        if values is not None
        for value in (values if isinstance(values, _SEVERAL) else [values])
    ]
    return Call("GET", path + _query(pairs), read, is_kept=is_kept)


def _query(pairs: Sequence[tuple[str, str]]) -> str:
    try:
        return f"?{urlencode(pairs, quote_via=quote)}" if pairs else ""
    except UnicodeEncodeError:
        raise Invalid("a parameter has half of a surrogate pair") from None


def _text(name: str, value: object) -> str:
    """Return a value of a parameter as text."""
    if isinstance(value, datetime):
        if value.utcoffset() is None:
            raise Invalid(f"{name}: must be a time with an offset")
        return value.isoformat()
    if isinstance(value, Mapping):
        return json_values.write(dict(value), Reader(HIGHEST), f"{name}.")[0]
    return str(value)


def _segment(text: str) -> str:
    """Return text as one segment of a path. `.` and `..` would mean other paths."""
    try:
        quoted = quote(text, safe="")
    except UnicodeEncodeError:
        raise Invalid("a name has half of a surrogate pair") from None
    return quoted.replace(".", "%2E") if text in {".", ".."} else quoted


def _model(kind: type[Body], reply: Reply) -> Body:
    return kind.model_validate_json(reply.body)


def _page(reply: Reply) -> TaskPage:
    position = reply.headers.get("feed-position", "")
    page = TaskPage.model_validate_json(reply.body)
    return page.model_copy(update={"feed_position": int(position) if position else None})


def _task(reply: Reply) -> Task:
    task = Task.model_validate_json(reply.body)
    return task.model_copy(update={"etag": reply.headers.get("etag")})


def _read_elsewhere(reply: Reply) -> None:
    if "x-total" not in reply.headers:
        raise ValueError("this is not an export")


def _object(reply: Reply) -> dict[str, Any]:
    found = from_json(reply.body)
    if not isinstance(found, dict):
        raise ValueError("this is not an object")
    return found


def _total(reply: Reply) -> int:
    return _Total.model_validate_json(reply.body).total


class _Total(BaseModel):
    total: int
