"""Reads the history of a task from a running service."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final
from uuid import UUID

from audit.commands.service_url import Failed, service_at
from audit.errors import Unavailable
from audit.history.events import HistoryBody, HistoryPage
from audit.history.json_text import members

_LIMIT: Final = "1000"


@asynccontextmanager
async def service_pages(
    url: str, task_id: UUID, key: str | None = None
) -> AsyncIterator[Callable[[str | None], Awaitable[HistoryPage]]]:
    """Open an HTTP client; yield a function that returns the page that begins at a cursor."""
    async with service_at(url, f"/api/v1/audit/tasks/{task_id}/history", key) as service:

        async def get_page(cursor: str | None) -> HistoryPage:
            query = {"limit": _LIMIT} | ({} if cursor is None else {"cursor": cursor})
            try:
                response = await service.send("GET", query=query)
                response.require_success(service.url)
            except Failed as failed:
                raise Unavailable(f"{service.url} does not answer: {failed}") from None
            try:
                body = HistoryBody.model_validate_json(response.body)
            except ValueError:
                raise Unavailable(f"{service.url} is not a task-audit service") from None
            text = dict(members(response.body.decode()))["events"]
            return HistoryPage(body.task_id, text, body.next_cursor, len(body.events))

        yield get_page
