"""The questions that are measured: each is hard in another way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote, urlencode

API: Final = "/api/v1/audit"
_DEEPEST_OFFSET = 1_000_000


Task = Mapping[str, Any]


@dataclass(frozen=True)
class Services:
    """Which services stand for which kind; the defaults are those of the made-up history."""

    frequent: str = "payments"
    second: str = "checkout"
    middling: str = "search-api"
    rare: str = "tax-loader"
    #: Its tasks are all a year old.
    retired: str = "mainframe"
    absent: str = "nobody"


@dataclass(frozen=True, slots=True)
class Shape:
    """One question: a route below the API, its filters, and how many tasks the page skips."""

    name: str
    route: str
    filters: tuple[tuple[str, str], ...] = ()
    skipped: int = 0
    #: The service is asked for the page by the cursor of the page before it.
    by_cursor: bool = False

    def target(self, limit: int, cursor: str | None = None) -> str:
        """Return the path and query of the URL; without a cursor, the page is told by offset."""
        params = [*self.filters, ("limit", str(limit))]
        if cursor is not None:
            params.append(("cursor", cursor))
        elif self.skipped:
            params.append(("offset", str(self.skipped)))
        return f"{API}/{self.route}?{urlencode(params)}"

    def params(self) -> dict[str, list[str]]:
        """Return the filters as the service's models take them, a service in the path included."""
        given: dict[str, list[str]] = {}
        for name, value in self.filters:
            given.setdefault(name, []).append(value)
        head, _, service = self.route.partition("/")
        if head == "by-service":
            given["service"] = [service, *given.get("service", [])]
        return given


def services_of(newest: Sequence[Task], oldest: Sequence[Task]) -> Services:
    """Return the services of a history of which only the newest and the oldest tasks are known."""
    counted = Counter(name for task in newest for name in task["services_touched"])
    names = [name for name, _ in counted.most_common()] or [Services.absent]
    old = (name for task in oldest for name in task["services_touched"])
    return Services(
        frequent=names[0],
        second=names[min(1, len(names) - 1)],
        middling=names[len(names) // 2],
        rare=names[-1],
        retired=next((name for name in old if name not in counted), names[-1]),
    )


def shapes(tasks: int, services: Services | None = None) -> Sequence[Shape]:
    """Return every shape for a history of so many tasks."""
    of = services or Services()
    week, month = ("days", "7"), ("days", "30")
    state_and_service = (("status", "failed"), ("service", of.middling), month)
    rare = (("service", of.frequent), ("status", "rejected"), ("intent", "revoke_access"))
    two = (("service", of.frequent), ("service", of.second))
    return (
        Shape("failures of 7 days", "failures", (week,)),
        Shape("frequent service", _by_service(of.frequent)),
        Shape("frequent service, 7 days", _by_service(of.frequent), (week,)),
        Shape("rare service", _by_service(of.rare)),
        Shape("only-old service", _by_service(of.retired)),
        Shape("state, mid service, 30 days", "query", state_and_service),
        Shape("the same and intent", "query", (*state_and_service, ("intent", "deploy_service"))),
        Shape("frequent service, rare state and intent", "query", rare),
        Shape("no filter", "query"),
        Shape("deep offset", "query", skipped=min(_DEEPEST_OFFSET, tasks // 3)),
        Shape("deep cursor", "query", skipped=tasks // 2, by_cursor=True),
        Shape("two services", "query", two),
        Shape("no match", _by_service(of.absent)),
    )


def _by_service(name: str) -> str:
    return f"by-service/{quote(name, safe='')}"
