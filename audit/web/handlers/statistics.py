"""The routes of statistics."""

from __future__ import annotations

from functools import partial

from aiohttp import web

from audit.history.answers import Question
from audit.history.statistics_query import DurationsQuery, FacetsQuery, HistogramQuery
from audit.web.handlers.asking import answer, parse
from audit.web.responses import BytesResponse
from audit.web.state import IDENTITY, SERVICE


async def get_histogram(request: web.Request) -> BytesResponse:
    """Count the tasks that match all filters, by time and state.

    `total` is always the `total` of the list with the same filters. A filter without a start begins
    with the oldest matching task. One without an end ends with the newest matching task, or now if
    it has a start.
    """

    def ask() -> Question:
        query = parse(request, HistogramQuery)
        return Question(query, partial(request.app[SERVICE].statistics.histogram, query))

    return await answer(request, ask)


async def get_facets(request: web.Request) -> BytesResponse:
    """Count the tasks that match all filters, by the most frequent values of some members.

    A facet ignores its own filter, so that its numbers tell what another choice would give. The
    facet `service` does not, because a task may have several services. If a facet would have to
    read too many tasks, its `values` are null, and `fits` is a `since` with which it would not.
    """

    def ask() -> Question:
        query = parse(request, FacetsQuery)
        if request[IDENTITY].project_id is not None:
            query = query.of_one_project()
        return Question(query, partial(request.app[SERVICE].statistics.facets, query))

    return await answer(request, ask)


async def get_durations(request: web.Request) -> BytesResponse:
    """Measure how long the tasks took that match all filters.

    A duration is the time from `created_at` to `completed_at` of a completed or failed task.
    """

    def ask() -> Question:
        query = parse(request, DurationsQuery)
        return Question(query, partial(request.app[SERVICE].statistics.durations, query))

    return await answer(request, ask)
