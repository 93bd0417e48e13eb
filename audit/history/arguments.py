"""The types of the arguments that say which tasks match, for the functions of Python programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, TypedDict
from uuid import UUID

OneOrMore = str | Sequence[str]


class Filters(TypedDict, total=False):
    """Filters that every list takes; `TaskFilter` describes each. None means "not given"."""

    last: str | None
    since: datetime | str | None
    until: datetime | str | None
    created_by: str | None
    project_id: UUID | str | None
    outcome: Mapping[str, Any] | str | None


class PageParams(Filters, total=False):
    """The filters, where the page begins, and whether to count."""

    cursor: str | None
    total: Literal["exact", "none"] | None


class CountParams(Filters, total=False):
    """The filters of `audit_query`, besides `status`."""

    service: OneOrMore | None
    intent: OneOrMore | None
    days: int | None


class IterateParams(CountParams, PageParams, total=False):
    """The same, and those of a page."""

    limit: int


class HistogramParams(CountParams, total=False):
    """The filters of `audit_query` besides `status`, and the buckets of a histogram."""

    interval: str | None
    buckets: int | None
    tz: str | None


class FacetParams(CountParams, total=False):
    """The filters of `audit_query` besides `status`, and the most values of a facet."""

    top: int | None


class DurationParams(HistogramParams, total=False):
    """The filters of `audit_query` besides `status`, and how to group the tasks."""

    by: Literal["none", "intent", "interval"] | None
