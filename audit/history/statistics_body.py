"""Statistics as responses show them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Generic, TypeVar

from pydantic import BaseModel, PlainSerializer

from audit.history.states import State
from audit.history.task import Output
from audit.history.values import Timestamp


def rfc3339(time: datetime) -> str:
    """Return a time in the form of responses: in UTC, with microseconds."""
    return time.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


Time = Annotated[Timestamp, PlainSerializer(rfc3339, return_type=str, when_used="json")]


class Numbers(Output):
    """How many tasks there are, by state."""

    total: int
    status: dict[State, int]
    """Always all six states."""


class Bucket(Numbers):
    """The tasks created from `start` on and before `end`."""

    start: Time
    end: Time
    partial: bool
    """Whether `since` or `until` cuts off a part of the bucket."""


class Histogram(Numbers):
    """How many tasks match, by time and state."""

    interval: str
    """The length of a bucket, also if `auto` was asked for."""
    tz: str
    since: Time | None
    until: Time | None
    """The window: `since` is in the first bucket, and `until` is the end of the last one or in it.
    null if no task matches a filter without a start."""
    failure_rate: float | None
    """The failed tasks divided by the failed and completed ones, with six decimals. null if there
    are none of either."""
    buckets: list[Bucket]
    """Ascending and without gaps: the `end` of one is the `start` of the next."""


class FacetValue(Output):
    """A value of a facet."""

    value: str | None
    """null: the tasks that have no value."""
    total: int
    """The `total` of the list with this value as the filter of the facet; for a service, with it
    added."""


class FacetValues(Output):
    """The most frequent values of a facet."""

    values: list[FacetValue]
    """The most frequent ones first, and those of the same number by name."""
    more: bool
    """Whether there are further values."""


class FacetRefused(Output):
    """A facet that is not counted, because too many tasks match."""

    values: None = None
    matching: int
    """How many tasks match."""
    at_most: int
    """How many tasks may match."""
    fits: Time
    """A `since` with which few enough tasks match."""


class Facets(Output):
    """The most frequent values of some members of the tasks that match."""

    total: int
    """The `total` of the list with the same filters."""
    facets: dict[str, FacetValues | FacetRefused]


class Percentiles(Output):
    """How long tasks took from `created_at` to `completed_at`, in seconds with six decimals."""

    tasks: int
    """How many completed or failed tasks have a `completed_at`."""
    p50: float | None
    """The median: half of the tasks took this long or less. It is the duration of a task."""
    p90: float | None
    p95: float | None
    p99: float | None
    max: float | None


class IntentDurations(Percentiles):
    """The durations of the tasks of an intent."""

    value: str | None
    """The intent; null: the tasks that have none."""


class BucketDurations(Percentiles):
    """The durations of the tasks created from `start` on and before `end`."""

    start: Time
    end: Time
    partial: bool


class Durations(Percentiles):
    """How long the tasks took that match."""

    unfinished: int
    """How many other tasks match. Together with `tasks`, it is the `total` of the list with the
    same filters."""
    negative: int
    """How many tasks have a `completed_at` before their `created_at`."""
    groups: list[IntentDurations | BucketDurations]
    """By intent, the one with the most tasks first; or by bucket, ascending. Empty with
    `by=none`."""


Body = TypeVar("Body", bound=BaseModel)


@dataclass(frozen=True)
class Statistic(Generic[Body]):
    """The body of a response, and for how long it is current while no task changes."""

    body: Body
    valid_until: datetime | None = None
    rows: int = 0
    total: int | None = None
    next_cursor: str | None = None

    def to_json(self) -> bytes:
        """Return the body of the response."""
        return self.body.model_dump_json().encode()
