"""The types of the arguments of the clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, TypedDict
from uuid import UUID

from audit.history import arguments
from audit.history.arguments import CountParams, OneOrMore


class ListParams(CountParams, total=False):
    """The filters of a list, and its page. None means "not given"."""

    limit: int | None
    """The largest number of tasks in a page; 100 by default, and 1,000 for those who read all."""
    offset: int | None
    """How many tasks to skip."""
    cursor: str | None
    """The `next_cursor` of a page, to begin after that page."""


class QueryParams(ListParams, total=False):
    """The same, with the states of the tasks."""

    status: OneOrMore | None


class ChangesParams(TypedDict, total=False):
    """The filters of the feed. None means "not given"."""

    status: OneOrMore | None
    service: OneOrMore | None
    intent: OneOrMore | None
    created_by: str | None
    project_id: UUID | str | None
    outcome: Mapping[str, Any] | str | None


class HistogramParams(arguments.HistogramParams, total=False):
    """The filters, and the buckets of a histogram."""

    status: OneOrMore | None


class FacetParams(arguments.FacetParams, total=False):
    """The filters, and the most values of a facet."""

    status: OneOrMore | None


class DurationParams(arguments.DurationParams, total=False):
    """The filters, and how to group the tasks."""

    status: OneOrMore | None


class ExportParams(arguments.CountParams, total=False):
    """The filters of an export, and its form. None means "not given"."""

    status: OneOrMore | None
    format: Literal["ndjson", "csv"] | None
    columns: OneOrMore | None
    """The columns of CSV in their order; all by default."""
    raw: bool | None
    """Whether cells of CSV are left as they are, also those that a spreadsheet would run."""


class Change(TypedDict, total=False):
    """Members of an open task that may change; `TaskChange` describes each. None clears one."""

    status: str
    approved_at: datetime | str | None
    completed_at: datetime | str | None
    services_touched: Sequence[str] | None
    outcome: Mapping[str, Any] | None
    estimated_resources: Mapping[str, Any] | None
    actual_resources: Mapping[str, Any] | None
    external_ai_used: Mapping[str, Any] | None
    error_message: str | None
    suggestions: Sequence[Any] | None


class NewTaskMembers(Change, total=False):
    """Members of a new task; `NewTask` describes each. `request_text` is required."""

    task_id: UUID | str | None
    project_id: UUID | str | None
    request_text: str
    created_by: str | None
    created_at: datetime | str | None
