"""The parameters of statistics: the filters of `/query`, and what to count by."""

from __future__ import annotations

from datetime import tzinfo
from typing import Annotated, Final, Self

from pydantic import BeforeValidator, PlainValidator, WithJsonSchema, model_validator

from audit.history.bars import AUTO, LENGTHS, MOST_BARS, zone_of
from audit.history.query import AnyStatus, AuditQuery
from audit.history.values import whole_number

_INTERVALS: Final = (AUTO, *LENGTHS)
_DEFAULT_BARS: Final = 60


def _interval(value: object) -> object:
    if value not in _INTERVALS:
        raise ValueError(f"must be one of {', '.join(_INTERVALS)}")
    return value


def _zone(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("must be the IANA name of a time zone, such as Europe/Berlin")
    zone_of(value)
    return value


Interval = Annotated[
    str,
    BeforeValidator(_interval),
    WithJsonSchema({"type": "string", "enum": list(_INTERVALS)}),
]
Zone = Annotated[str, PlainValidator(_zone, json_schema_input_type=str)]


class StatisticsQuery(AnyStatus):
    """The parameters that all statistics share: the filters of `/query`."""

    def page(self, *, offset: int, limit: int) -> AuditQuery:
        """Return the query for a part of the list of the same tasks."""
        filters = {name: getattr(self, name) for name in AnyStatus.model_fields}
        return AuditQuery.model_construct(**filters, offset=offset, limit=limit)


class HistogramQuery(StatisticsQuery):
    """The parameters of `/statistics/histogram`."""

    interval: Interval = AUTO
    """The length of a bucket. `auto`, the default, is the finest one with at most `buckets`
    buckets."""
    buckets: Annotated[int, whole_number(1, MOST_BARS)] | None = None
    """The most buckets of the interval `auto`; 60 by default. Not together with another
    interval."""
    tz: Zone = "UTC"
    """The IANA name of the time zone in which days begin at midnight, and weeks on Monday; UTC by
    default."""

    @model_validator(mode="after")
    def _buckets_are_for_auto(self) -> Self:
        if self.buckets is not None and self.interval != AUTO:
            raise ValueError("buckets: only together with interval=auto")
        return self

    @property
    def most_bars(self) -> int:
        """The most bars that the histogram may have."""
        return MOST_BARS if self.interval != AUTO else self.buckets or _DEFAULT_BARS

    @property
    def zone(self) -> tzinfo:
        """The time zone."""
        return zone_of(self.tz)

    @property
    def ends_now(self) -> bool:
        """Whether the last bar is the one that holds the present time."""
        return self.until is None and (self.since is not None or self.span is not None)

    @property
    def moves_with_clock(self) -> bool:
        """Whether bars may come or go a second later, with the same tasks."""
        return self.ends_now
