"""Facets and durations: what they count, and what they refuse."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from audit.errors import Invalid, TooMany
from audit.history import facet_counts
from audit.history.query import parse_arguments
from audit.history.service import AuditService
from audit.history.statistics_body import FacetRefused, Facets, FacetValues
from audit.history.statistics_query import FacetsQuery
from audit.postgres.pool import open_pool
from audit.settings import Settings
from tests.conftest import ago, task

DAY = datetime(2025, 11, 19, 7, tzinfo=UTC)


@pytest.fixture(params=["read", "counted", "counted, then read"])
def ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How services are counted: as in histories of all sizes, though there are few tasks."""
    if request.param != "read":
        monkeypatch.setattr(facet_counts, "_TASKS_OF_BOUNDS", 0)
        monkeypatch.setattr(facet_counts, "_FEW_SERVICES", 2)
    if request.param == "counted":
        monkeypatch.setattr(facet_counts, "_TASKS_OF_SERVICE", 0.001)


def values(answer: Facets, facet: str) -> dict[str | None, int]:
    found = answer.facets[facet]
    assert isinstance(found, FacetValues)
    return {each.value: each.total for each in found.values}


async def record_some(service: AuditService) -> None:
    await service.record(
        [
            task(created_at=DAY, status="failed", services_touched=["a", "b"], created_by="ada"),
            task(created_at=DAY, status="failed", services_touched=["a"], outcome=None),
            task(created_at=DAY, services_touched=["a", "c"], created_by="alan"),
            task(created_at=DAY, services_touched=[]),
        ]
    )


async def test_a_facet_ignores_its_own_filter_except_for_services(service: AuditService) -> None:
    await record_some(service)
    facets = ["status", "service", "intent", "created_by", "project_id"]

    answer = await service.get_facets(facets, status="failed", service="a", created_by="ada")

    assert 1 == answer.total
    assert {"failed": 1} == values(answer, "status")
    assert {"a": 1, "b": 1} == values(answer, "service")
    assert {"ada": 1, None: 1} == values(answer, "created_by")
    assert {None: 1} == values(answer, "project_id")
    answer = await service.get_facets(facets, status="failed", service="a")
    assert {"failed": 2, "completed": 1} == values(answer, "status")
    assert {"deploy_service": 1, None: 1} == values(answer, "intent")
    assert list(answer.facets) == facets


@pytest.mark.usefixtures("ways")
async def test_each_number_is_the_total_of_the_list_with_this_value(service: AuditService) -> None:
    await record_some(service)
    for folded in (False, True):
        if folded:
            await service.upkeep.fold_counts()
        answer = await service.get_facets(["status", "service", "intent"], status="failed")
        for status, n in values(answer, "status").items():
            assert n == await service.get_task_count(status=status)
        for name, n in values(answer, "service").items():
            assert n == await service.get_task_count(status="failed", service=name)


@pytest.mark.usefixtures("ways")
async def test_only_the_top_values_are_returned_and_more_says_so(service: AuditService) -> None:
    names = [f"service {n:02}" for n in range(40)]
    # Service 0 has one task, service 1 two of them, and so on; two services have the same number.
    await service.record(
        [task(created_at=DAY, services_touched=names[n // 2 * 2 :]) for n in range(40)]
    )

    answer = await service.get_facets("service", top=3)

    assert ["service 38", "service 39", "service 36"] == list(values(answer, "service"))
    assert answer.facets["service"].more  # type: ignore[union-attr]
    answer = await service.get_facets("service", top=40)
    assert not answer.facets["service"].more  # type: ignore[union-attr]
    assert 40 == len(values(answer, "service"))


@pytest.mark.usefixtures("ways")
async def test_services_of_a_window_are_found_among_larger_ones(service: AuditService) -> None:
    """The bound of a service is that of a whole month. The largest one may have no task at all."""
    large = [f"large {n}" for n in range(30)]
    await service.record([task(created_at=DAY, services_touched=large) for _ in range(20)])
    await service.record([task(created_at=DAY + timedelta(hours=1), services_touched=["small"])])
    await service.upkeep.fold_counts()

    answer = await service.get_facets(
        "service", since=DAY + timedelta(minutes=1), until=DAY + timedelta(days=1)
    )

    assert {"small": 1} == values(answer, "service")


async def test_no_task_is_no_value(service: AuditService) -> None:
    answer = await service.get_facets(["status", "service", "created_by"])

    assert 0 == answer.total
    assert [{}, {}, {}] == [values(answer, facet) for facet in answer.facets]


async def test_what_would_read_too_many_tasks_is_refused_with_what_fits(dsn: str) -> None:
    settings = Settings(pool_size=2, most_grouped=3)
    async with open_pool(settings, dsn) as pool:
        service = AuditService(pool, settings)
        await service.record(
            [
                task(created_at=ago(days=days), created_by="ada", status="failed")
                for days in (1, 1, 3, 3, 3)
            ]
        )

        answer = await service.get_facets(["status", "created_by", "service"])

        assert {"failed": 5} == values(answer, "status")
        assert {"payments": 5} == values(answer, "service")
        refused = answer.facets["created_by"]
        assert isinstance(refused, FacetRefused)
        assert (5, 3) == (refused.matching, refused.at_most)
        fitting = await service.get_facets("created_by", since=refused.fits)
        assert {"ada": 2} == values(fitting, "created_by")
        # A filter that the counts do not know has a total all the same.
        answer = await service.get_facets(["status"], created_by="ada")
        assert 5 == answer.total
        assert isinstance(answer.facets["status"], FacetRefused)

        for ask in (
            service.get_durations,
            lambda **given: service.get_histogram(created_by="ada", **given),
        ):
            with pytest.raises(TooMany) as problem:
                await ask()
            assert 5 == problem.value.matching
            assert refused.fits == datetime.fromisoformat(str(problem.value.members["fits"]))
            await ask(since=refused.fits)


async def test_if_no_day_fits_a_shorter_time_does(dsn: str) -> None:
    settings = Settings(pool_size=2, most_grouped=3)
    async with open_pool(settings, dsn) as pool:
        service = AuditService(pool, settings)
        now = datetime.now(UTC)
        await service.record([task(created_at=now - timedelta(seconds=n)) for n in range(9)])

        with pytest.raises(TooMany) as problem:
            await service.get_durations()

        fits = datetime.fromisoformat(str(problem.value.members["fits"]))
        assert now - timedelta(seconds=4) <= fits <= now + timedelta(seconds=1)
        assert (await service.get_durations(since=fits)).tasks <= 3


async def test_durations_are_percentiles_of_real_tasks(service: AuditService) -> None:
    lengths = [1.5, -2, 40, 7.000001]
    await service.record(
        [
            *(
                task(created_at=DAY, completed_at=DAY + timedelta(seconds=length))
                for length in lengths
            ),
            task(created_at=DAY, status="rejected"),
            task(created_at=DAY, status="pending"),
        ]
    )

    answer = await service.get_durations()

    assert (4, 2, 1) == (answer.tasks, answer.unfinished, answer.negative)
    assert (1.5, 40, 40) == (answer.p50, answer.p90, answer.max)
    assert [] == answer.groups
    answer = await service.get_durations(status="pending", by="interval", last="24h")
    assert (0, None) == (answer.tasks, answer.p50)
    assert {0} == {group.tasks for group in answer.groups}


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"facet": "outcome"}, "facet"),
        ({"facet": []}, "facet"),
        ({"facet": "status", "top": 101}, "top"),
        ({"facet": "status", "limit": 10}, "limit"),
        ({}, "facet"),
    ],
    ids=range(5),
)
def test_wrong_parameters_of_facets_are_refused(given: dict[str, Any], field: str) -> None:
    with pytest.raises(Invalid) as refused:
        parse_arguments(FacetsQuery, given)

    assert refused.value.errors is not None
    assert refused.value.errors[0]["field"].startswith(field)


async def test_time_zones_and_intervals_are_for_durations_by_interval(
    service: AuditService,
) -> None:
    for given in ({"interval": "1d"}, {"tz": "UTC"}, {"buckets": 3}):
        with pytest.raises(Invalid, match="only together with by=interval"):
            await service.get_durations(**given)
    with pytest.raises(Invalid, match="must be one of none, intent, interval"):
        await service.get_durations(by="service")  # type: ignore[arg-type]
