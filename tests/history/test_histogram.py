"""Histograms: their window, their buckets, and what they refuse."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from audit.errors import Invalid
from audit.history.query import parse_arguments
from audit.history.service import AuditService
from audit.history.statistics_body import Histogram
from audit.history.statistics_query import HistogramQuery
from tests.conftest import task

NOW = datetime.now(UTC).replace(microsecond=0)
#: A Wednesday.
DAY = datetime(2025, 11, 19, tzinfo=UTC)
HOUR = timedelta(hours=1)


async def histogram(
    service: AuditService, /, *, clock: datetime | None = None, **given: Any
) -> Histogram:
    query = parse_arguments(HistogramQuery, given)
    answer = await service.statistics.histogram(query, clock=clock)
    listed = await service.audit_query(
        **{
            name: value
            for name, value in given.items()
            if name not in ("interval", "buckets", "tz")
        },
        limit=1,
    )
    assert clock or listed.total == answer.body.total
    return answer.body


def totals(answer: Histogram) -> list[int]:
    return [bucket.total for bucket in answer.buckets]


async def test_buckets_are_without_gaps_and_count_each_state(service: AuditService) -> None:
    await service.record(
        [
            task(created_at=DAY + n * HOUR, status=status)
            for n, status in [(1, "failed"), (2, "completed"), (2, "failed"), (50, "pending")]
        ]
    )

    answer = await histogram(
        service, interval="1d", since=DAY, until=DAY + timedelta(days=4), tz="Europe/Berlin"
    )

    assert [3, 0, 1, 0, 0] == totals(answer)
    assert 4 == answer.total
    assert 0.666667 == answer.failure_rate
    assert {"pending": 1, "approved": 0, "executing": 0, "completed": 1, "failed": 2,
            "rejected": 0} == answer.status  # fmt: skip
    assert [True, False, False, False, True] == [bucket.partial for bucket in answer.buckets]
    assert DAY - HOUR == answer.buckets[0].start
    assert (DAY, DAY + timedelta(days=4)) == (answer.since, answer.until)
    for one, following in zip(answer.buckets, answer.buckets[1:], strict=False):
        assert one.end == following.start


async def test_a_filter_without_limits_covers_the_oldest_to_the_newest_task(
    service: AuditService,
) -> None:
    for created_by in (None, "maria"):
        await service.record(
            [task(created_at=DAY + n * HOUR, created_by=created_by) for n in (5, 9)]
        )
    each: list[dict[str, Any]] = [
        {},
        {"created_by": "maria"},
        {"service": "payments", "status": "completed"},
    ]
    for filters in each:
        answer = await histogram(service, interval="1h", **filters)

        assert 5 == len(answer.buckets)
        assert (DAY + 5 * HOUR, DAY + 10 * HOUR) == (answer.since, answer.until)
        assert not any(bucket.partial for bucket in answer.buckets)


async def test_a_window_without_an_end_ends_now_or_with_the_newest_task(
    service: AuditService,
) -> None:
    answer = await histogram(service, last="3h", interval="1h")

    assert [0] * 4 == totals(answer)
    assert answer.until is not None
    assert abs(datetime.now(UTC) - answer.until) < timedelta(minutes=2)
    assert answer.buckets[-1].partial

    await service.record([task(created_at=NOW + 5 * HOUR)])
    each: list[dict[str, Any]] = [
        {"last": "3h"},
        {"since": NOW - 3 * HOUR},
        {"since": NOW + 4 * HOUR},
    ]
    for filters in each:
        answer = await histogram(service, interval="1h", **filters)

        assert 1 == answer.buckets[-1].total == answer.total
        assert answer.buckets[-1].start <= NOW + 5 * HOUR < answer.buckets[-1].end


async def test_no_match_is_no_bucket_without_a_start_and_zeros_with_one(
    service: AuditService,
) -> None:
    await service.record([task(created_at=DAY)])

    without_start: list[dict[str, Any]] = [
        {"service": "none"},
        {"created_by": "nobody"},
        {"until": DAY},
    ]
    for filters in without_start:
        answer = await histogram(service, **filters)
        assert ([], 0, None) == (answer.buckets, answer.total, answer.since)
        assert answer.failure_rate is None
    with_start: list[dict[str, Any]] = [
        {"since": DAY, "until": DAY},
        {"since": DAY - HOUR, "until": DAY, "created_by": "nobody"},
    ]
    for filters in with_start:
        answer = await histogram(service, **filters)
        assert {0} == set(totals(answer))


@pytest.mark.parametrize(
    ("given", "field", "detail"),
    [
        (
            {"interval": "1h", "since": DAY, "until": DAY + timedelta(days=365)},
            "interval",
            "would be 8,760 buckets of 1h; at most 400: ask for 1d, or a shorter window",
        ),
        ({"since": DAY - timedelta(days=200_000), "until": DAY}, "since", "ask for a shorter"),
        (
            {"since": "9999-12-30T00:00:00Z", "until": "9999-12-31T12:00:00Z", "interval": "1w"},
            "until",
            "would end outside of the years 1 to 9999",
        ),
        ({"interval": "2h"}, "interval", "must be one of auto, 1m, 5m, 15m, 1h, 3h"),
        ({"interval": "1h", "buckets": 3}, "buckets", "only together with interval=auto"),
        ({"buckets": 401}, "buckets", "from 1 to 400"),
        ({"tz": "Europe/berlin"}, "tz", "the nearest names are Europe/Berlin"),
        ({"limit": 3}, "limit", "unknown"),
        ({"cursor": "x"}, "cursor", "unknown"),
    ],
    ids=range(9),
)
async def test_wrong_parameters_are_refused(
    service: AuditService, given: dict[str, Any], field: str, detail: str
) -> None:
    with pytest.raises(Invalid) as refused:
        await histogram(service, **given)

    assert refused.value.errors is not None
    (error,) = refused.value.errors
    assert field == error["field"]
    assert detail in error["detail"]
