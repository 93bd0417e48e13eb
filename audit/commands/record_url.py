"""Records tasks through a running service."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Final

from audit.commands.service_url import Failed, Service, service_at
from audit.errors import Invalid, Unavailable
from audit.history.json_text import Reader
from audit.history.parsing import TaskBatch
from audit.history.recording import Recorded
from audit.history.task import RecordedBody
from audit.settings import Settings

log = logging.getLogger("audit")

_ATTEMPTS: Final = 8
#: For tasks that have been validated already.
_NO_LIMITS: Final = Settings.model_construct(
    max_task_bytes=sys.maxsize, max_number_digits=sys.maxsize, max_nesting=sys.maxsize
)


class _TooLarge(Exception):
    """The service or a proxy refuses the size of the body."""


class _Client:
    """Records through a running service, and retries while the service is unavailable.

    If a request is too large for the service or a proxy, its tasks are sent in two halves.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._url = service.url
        #: Size of the smallest body that was too large.
        self._too_large: float = float("inf")

    async def send(self, batch: TaskBatch) -> Recorded:
        """Record the tasks with one request, or with several if that is too large."""
        return await self._send(batch.text.encode(), batch.labels)

    async def _send(self, body: bytes, labels: Sequence[str]) -> Recorded:
        if len(body) < self._too_large or len(labels) == 1:
            try:
                return await self._send_whole(body)
            except _TooLarge:
                if len(labels) == 1:
                    label = labels[0] if labels[0].endswith(": ") else ""
                    raise Invalid(
                        f"{label}the task takes a request of {len(body):,} bytes, which is too"
                        f" large for {self._url} or a proxy before it (413)"
                    ) from None
                self._too_large = min(self._too_large, len(body))
        tasks = [task.text for task in Reader(_NO_LIMITS).elements([body.decode()])]
        middle = len(tasks) // 2
        first = await self._send(_array(tasks[:middle]), labels[:middle])
        second = await self._send(_array(tasks[middle:]), labels[middle:])
        return Recorded(
            first.recorded + second.recorded,
            first.duplicates + second.duplicates,
            [*first.ids_as_text, *second.ids_as_text],
        )

    async def _send_whole(self, body: bytes) -> Recorded:
        """Send one request, and retry it.

        Raises:
            _TooLarge: the response is 413.
            Invalid: the service refuses the tasks.
            Unavailable: the service does not answer, or the URL is not that of the service.
        """
        for retries in range(_ATTEMPTS - 1):
            try:
                return await self._attempt(body)
            except Failed as failed:
                wait_seconds = failed.wait_seconds(retries)
                log.warning("%s: %s; trying again in %d s", self._url, failed, wait_seconds)
            await asyncio.sleep(wait_seconds)
        try:
            return await self._attempt(body)
        except Failed as failed:
            raise Unavailable(f"{self._url} does not answer: {failed}") from None

    async def _attempt(self, body: bytes) -> Recorded:
        answer = await self._service.send("POST", "/tasks", body)
        if answer.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            raise _TooLarge
        answer.require_success(self._url)
        return self._recorded(answer.body)

    def _recorded(self, body: bytes) -> Recorded:
        try:
            answer = RecordedBody.model_validate_json(body)
        except ValueError:
            raise Unavailable(f"{self._url} is not a task-audit service") from None
        ids = [str(task_id) for task_id in answer.task_ids]
        return Recorded(answer.recorded, answer.duplicates, ids)


def _array(elements: Sequence[str]) -> bytes:
    return f"[{','.join(elements)}]".encode()


@asynccontextmanager
async def service_sender(
    url: str, key: str | None = None
) -> AsyncIterator[Callable[[TaskBatch], Awaitable[Recorded]]]:
    """Open an HTTP client to record through the service at a URL. Only it gets the API key."""
    async with service_at(url, key) as service:
        yield _Client(service).send
