"""The routes of statistics."""

from __future__ import annotations

from functools import partial

from aiohttp import web

from audit.history.answers import Question
from audit.history.statistics_query import HistogramQuery
from audit.web.handlers.asking import answer, parse
from audit.web.responses import BytesResponse
from audit.web.state import SERVICE


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
