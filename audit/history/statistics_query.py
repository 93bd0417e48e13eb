"""The parameters of statistics: the filters of `/query`, and what to count by."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import tzinfo
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    PlainValidator,
    PrivateAttr,
    WithJsonSchema,
    model_validator,
)

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
        return AuditQuery.model_construct(**self._filters(), offset=offset, limit=limit)

    def without(self, *names: str) -> StatisticsQuery:
        """Return the filters besides those of these names."""
        filters = self._filters()
        return StatisticsQuery.model_construct(
            **{name: value for name, value in filters.items() if name not in names}
        )

    def _filters(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in AnyStatus.model_fields}


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


#: A member of tasks whose most frequent values are counted.
FACETS: Final = ("status", "service", "intent", "created_by", "project_id")
_BY: Final = ("none", "intent", "interval")


def _facet(value: object) -> object:
    if value not in FACETS:
        raise ValueError(f"must be one of {', '.join(FACETS)}")
    return value


def _by(value: object) -> object:
    if value not in _BY:
        raise ValueError(f"must be one of {', '.join(_BY)}")
    return value


Facet = Annotated[
    str, BeforeValidator(_facet), WithJsonSchema({"type": "string", "enum": list(FACETS)})
]


class FacetsQuery(StatisticsQuery):
    """The parameters of `/statistics/facets`."""

    facet: Annotated[tuple[Facet, ...], Field(max_length=len(FACETS))]
    """A member whose most frequent values are counted. May be given several times."""
    top: Annotated[int, whole_number(1, 100)] = 10
    """The most values of a facet; 10 by default."""
    _is_of_one_project: bool = PrivateAttr(default=False)

    def of_one_project(self) -> FacetsQuery:
        """Return the query of a caller who may see one project only."""
        bound = self.model_copy()
        bound._is_of_one_project = True  # noqa: SLF001 - of the same class
        return bound

    def filter_of(self, facet: str) -> StatisticsQuery:
        """Return the filter of the tasks that a facet counts.

        It is without the filter of the facet itself, so that a client sees what it could choose
        instead. A task may have several services, so that of the services stays: it says how many
        tasks have touched another service too.
        """
        return self.without(*self._ignored([facet]))

    @property
    def watched(self) -> StatisticsQuery:
        """Matches every task that any of the facets counts."""
        return self.without(*self._ignored(self.facet))

    def _ignored(self, facets: Iterable[str]) -> set[str]:
        kept = {"service", "project_id"} if self._is_of_one_project else {"service"}
        return set(facets) - kept


class DurationsQuery(HistogramQuery):
    """The parameters of `/statistics/durations`."""

    by: Annotated[Literal["none", "intent", "interval"], BeforeValidator(_by)] = "none"
    """`intent` or `interval` also groups the tasks; `none` by default. `interval`, `buckets` and
    `tz` are only for `interval`."""

    @model_validator(mode="after")
    def _interval_is_asked_for(self) -> Self:
        given = self.model_fields_set & {"interval", "buckets", "tz"}
        if self.by != "interval" and given:
            raise ValueError(f"{min(given)}: only together with by=interval")
        return self

    @property
    def moves_with_clock(self) -> bool:
        """Whether tasks may leave the window, or bars may come or go."""
        return self.ends_now if self.by == "interval" else self.span is not None
