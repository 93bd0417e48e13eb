"""The client for programs on asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Awaitable,
    Callable,
    Iterable,
    Mapping,
    Sequence,
)
from functools import partial
from pathlib import Path
from typing import Any, Generic, Self, TypeVar, Unpack
from uuid import UUID

import httpx2

from audit.client import calls, transport
from audit.client.arguments import (
    Change,
    ChangesParams,
    DurationParams,
    ExportParams,
    FacetParams,
    HistogramParams,
    ListParams,
    NewTaskMembers,
    QueryParams,
)
from audit.client.exporting import SILENT_SECONDS, Download
from audit.client.models import Caller, ExportManifest, FeedChange, Task, TaskPage
from audit.client.wire import Attempt, Call, Lost, Reply, Retries, Steps, Wait, Wire
from audit.history.events import HistoryBody, TaskEvent
from audit.history.statistics_body import Durations, Facets, Histogram
from audit.history.task import NewTask, RecordedBody, TaskSummary
from audit.profiles import ServiceAddress, locate_service

Item = TypeVar("Item")
Page = TypeVar("Page", bound=calls.HasCursor)
Result = TypeVar("Result")


class AsyncPages(Generic[Item, Page]):
    """A list, read page by page while a program goes through it. Each loop begins anew."""

    def __init__(self, client: AsyncClient, listing: calls.Listing[Item, Page]) -> None:
        self._client = client
        self._listing = listing

    async def __aiter__(self) -> AsyncGenerator[Item]:
        async for page in self.pages():
            for item in self._listing.items(page):
                yield item

    async def pages(self) -> AsyncGenerator[Page]:
        """Yield page after page. Pages of tasks have no total here; see `first` and `total`."""
        cursor = None
        while True:
            page = await self._client.send(self._listing.page(cursor))
            yield page
            cursor = page.next_cursor
            if cursor is None:
                return

    async def first(self) -> Page:
        """Return the first page, with the exact total if it is a page of tasks."""
        return await self._client.send(self._listing.first())


class AsyncTaskPages(AsyncPages[TaskSummary, TaskPage]):
    """A list of tasks, newest first, read page by page while a program goes through it."""

    async def total(self) -> int:
        """Return the exact number of tasks that match."""
        return await self._client.send(self._listing.total())


class AsyncChanges:
    """Changes of tasks in the order of the log, for ever. A loop continues at `position`."""

    def __init__(
        self, client: AsyncClient, filters: Mapping[str, Any], position: int | None, poll: int
    ) -> None:
        self._client = client
        self._filters = filters
        self._poll = poll
        self.position = position
        """Where to continue: after the last change, and after those that do not match."""

    async def __aiter__(self) -> AsyncGenerator[FeedChange]:
        while True:
            call = calls.changes(self._filters, self.position, self._poll)
            page = await self._client.send(call)
            for change in page.changes:
                self.position = change.position
                yield change
            self.position = page.position


class AsyncClient:
    """Records tasks and asks questions about them, through a running service.

    It may be used by several coroutines of one event loop. Every method raises a `Problem` if the
    service refuses, and `Unavailable` if it does not answer, after several attempts.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        key: str | None = None,
        profile: str | None = None,
        timeout: float = 30.0,
        tries: int = 5,
        insecure: bool = False,
        read_your_writes: bool = True,
    ) -> None:
        """Use the service at a URL with an API key, or that of a profile.

        What is not given is taken from AUDIT_URL, AUDIT_KEY and AUDIT_PROFILE, then from the
        default profile. `timeout` is for all `tries` of a call together, in seconds. A response
        that says when to try again does not count as a try. With `insecure`, the key may be sent
        over a network without TLS. With `read_your_writes`, what this client reads contains what it
        has written, also from a standby of the database.

        Raises:
            BadConfiguration: a value is not valid, or the key would go over a network without TLS.
        """
        address = locate_service(url, key, profile)
        retries = Retries(tries, timeout, counts_retry_after=False)
        self._open(address, retries, insecure=insecure, read_your_writes=read_your_writes)

    @classmethod
    def at(cls, address: ServiceAddress, retries: Retries, *, insecure: bool = False) -> Self:
        """Use the service at an address. Nothing is taken from the environment but proxies."""
        client = cls.__new__(cls)
        client._open(address, retries, insecure=insecure)  # noqa: SLF001 - of the same class
        return client

    def _open(
        self,
        address: ServiceAddress,
        retries: Retries,
        *,
        insecure: bool,
        read_your_writes: bool = True,
    ) -> None:
        self._wire = Wire(address, retries, insecure=insecure, read_your_writes=read_your_writes)
        self._http = httpx2.AsyncClient(**transport.options(address.url, address.ca_file))

    @classmethod
    def from_profile(cls, name: str, **options: Any) -> Self:
        """Use the service of a profile, see `audit profiles`."""
        return cls(profile=name, **options)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._wire.url!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    def failures(self, **filters: Unpack[ListParams]) -> AsyncTaskPages:
        """List the failed tasks: those of the last 7 days, unless the filters say otherwise."""
        return AsyncTaskPages(self, calls.failures(filters))

    def by_service(self, service_name: str, **filters: Unpack[QueryParams]) -> AsyncTaskPages:
        """List the tasks that have touched a service."""
        return AsyncTaskPages(self, calls.by_service(service_name, filters))

    def query(self, **filters: Unpack[QueryParams]) -> AsyncTaskPages:
        """List the tasks that match all the filters."""
        return AsyncTaskPages(self, calls.query(filters))

    async def task(self, task_id: UUID | str) -> Task:
        """Return a task with all its members."""
        return await self.send(calls.task(task_id))

    def history(self, task_id: UUID | str) -> AsyncPages[TaskEvent, HistoryBody]:
        """List the events of a task, oldest first: who changed what, and when."""
        return AsyncPages(self, calls.history(task_id))

    def changes(
        self, position: int | None = None, **filters: Unpack[ChangesParams]
    ) -> AsyncChanges:
        """Follow the changes of tasks from a position on: 0 for all of them, None from now on.

        The `position` of a change is the bookmark to continue after it. If the service does not
        answer, the loop ends with `Unavailable`; another loop continues where it ended.

        Raises:
            PositionGone: the log ends before the position, because a backup was restored.
        """
        return AsyncChanges(self, filters, position, self._wire.retries.longest_poll)

    async def histogram(self, **filters: Unpack[HistogramParams]) -> Histogram:
        """Count the tasks that match, by time and state."""
        return await self.send(calls.histogram(filters))

    async def facets(self, *names: str, **filters: Unpack[FacetParams]) -> Facets:
        """Count the most frequent values of members, such as `service` and `intent`."""
        return await self.send(calls.facets(names, filters))

    async def durations(self, **filters: Unpack[DurationParams]) -> Durations:
        """Return how long the tasks took that match."""
        return await self.send(calls.durations(filters))

    async def export(
        self, path: Path | str, *, resume: bool = False, **params: Unpack[ExportParams]
    ) -> ExportManifest:
        """Export all tasks that match to a file; return its manifest, once both are complete.

        The file is compressed if its name ends with `.gz`. An export that is cut off stays in
        `FILE.part`. With `resume`, one to the same file with the same parameters is continued.

        Raises:
            Unavailable: the export was cut off, or the service does not answer.
            WrongFile: a part is there and `resume` is not given, or it is of another export.
        """
        download = Download(Path(path), params)
        try:
            await _in_thread(partial(download.open, resume=resume))
            await self._run(self._wire.exchange(download.call), partial(self._receive, download))
            recorded = None
            if call := download.manifest_call():
                recorded = await self.send(call)
            return await _in_thread(partial(download.finish, recorded))
        finally:
            await _in_thread(download.close)

    async def record(
        self, task: NewTask | Mapping[str, Any] | None = None, /, **members: Unpack[NewTaskMembers]
    ) -> UUID:
        """Record a task, given as one or by its members; return its id.

        A task without an id gets one, so that it is recorded once even if it is sent again.
        """
        result = await self._run(calls.record(self._wire, calls.one_of(task, members)))
        return result.task_ids[0]

    async def record_many(
        self,
        tasks: Iterable[NewTask | Mapping[str, Any]] | AsyncIterable[NewTask | Mapping[str, Any]],
    ) -> RecordedBody:
        """Record tasks, in requests of up to 1,000. Each request records all of its tasks or none.

        If a request fails, those before it are recorded. Tasks that have an id can be sent again.
        """
        batches = calls.Batches(self._wire)
        done: list[RecordedBody] = []

        async def run(steps: Steps[RecordedBody] | None) -> None:
            if steps is not None:
                done.append(await self._run(steps))

        if isinstance(tasks, AsyncIterable):
            async for task in tasks:
                await run(batches.add(task))
        else:
            for task in tasks:
                await run(batches.add(task))
        await run(batches.rest())
        return calls.sum_of(done)

    async def record_json(self, tasks: bytes, labels: Sequence[str]) -> RecordedBody:
        """Record the JSON text of an array of at most 1,000 tasks, each with a task_id.

        `labels` has what errors call each task, such as `line 4: `.
        """
        return await self._run(calls.record_json(self._wire, tasks, labels))

    async def update(
        self, task_id: UUID | str, *, if_match: str | None = None, **change: Unpack[Change]
    ) -> Task:
        """Move an open task forward and fill in members; return it. None clears a member.

        With `if_match`, the `etag` of a task, it is changed only if it is still in that state.

        Raises:
            TaskNotFound: no task has this id.
            PreconditionFailed: the task has another entity tag than `if_match`.
            Conflict: the task is terminal, or the change goes backwards or is not allowed.
        """
        return await self.send(calls.update(task_id, change, if_match))

    async def whoami(self) -> Caller:
        """Return whom the key belongs to, and what it allows."""
        return await self.send(calls.whoami())

    async def send(self, call: Call[Result]) -> Result:
        """Send a request, and again if necessary; return its result."""
        return await self._run(self._wire.exchange(call))

    async def _run(
        self,
        steps: Steps[Result],
        send: Callable[[Attempt], Awaitable[Reply | Lost]] | None = None,
    ) -> Result:
        """Do one step after the other until there is a result. `send` sends an attempt."""
        send = send or self._attempt
        answer: Reply | Lost | None = None
        try:
            while True:
                step = steps.send(answer)
                answer = None
                if isinstance(step, Wait):
                    await asyncio.sleep(step.seconds)
                else:
                    answer = await send(step)
        except StopIteration as done:
            result: Result = done.value
            return result

    async def _attempt(self, attempt: Attempt) -> Reply | Lost:
        try:
            async with (
                asyncio.timeout(attempt.seconds),
                self._http.stream(
                    attempt.method,
                    attempt.url,
                    content=attempt.body,
                    headers=attempt.headers,
                    timeout=transport.timeouts(attempt.seconds),
                ) as response,
            ):
                return await _read(response)
        except TimeoutError:
            return transport.TOO_SLOW
        except (httpx2.HTTPError, httpx2.InvalidURL) as failure:
            return transport.lost(failure)

    async def _receive(self, download: Download, attempt: Attempt) -> Reply | Lost:
        """Send an attempt to export. If the response is an export, write it."""
        try:
            async with self._http.stream(
                attempt.method,
                attempt.url,
                headers=attempt.headers,
                timeout=transport.timeouts(SILENT_SECONDS),
            ) as response:
                reply = transport.reply(response, b"")
                if not await _in_thread(partial(download.begin, reply)):
                    return await _read(response)
                async for piece in response.aiter_bytes():
                    download.write(piece)
                return reply
        except (httpx2.HTTPError, httpx2.InvalidURL) as failure:
            return download.lost(transport.lost(failure))


async def _in_thread(function: Callable[[], Result]) -> Result:
    """Run a function that uses the disk. If this is cancelled, it waits for the function to end.

    Otherwise the thread would go on with a file that another export may have opened.
    """
    running = asyncio.ensure_future(asyncio.to_thread(function))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise


async def _read(response: httpx2.Response) -> Reply | Lost:
    body = bytearray()
    async for piece in response.aiter_bytes():
        body += piece
        if len(body) > transport.LARGEST_REPLY:
            return transport.TOO_LARGE
    return transport.reply(response, bytes(body))
