"""What clients send and how they read the answer: attempts, retries, redirects and problems.

There is no input and output here. `Wire.exchange` is a generator: it yields an `Attempt`, gets the
`Reply` to it or a `Lost`, and yields a `Wait` before the next attempt. The two clients differ only
in how they do what it yields.
"""

from __future__ import annotations

import logging
import math
import random
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from importlib.metadata import version
from ipaddress import ip_address
from threading import Lock
from typing import Any, Final, Generic, TypeVar
from urllib.parse import SplitResult, urljoin, urlsplit
from uuid import uuid4

from pydantic import SecretStr
from pydantic_core import from_json

from audit.errors import (
    TYPE,
    Conflict,
    Invalid,
    PreconditionFailed,
    Problem,
    Unavailable,
    UnknownPosition,
)
from audit.profiles import BadConfiguration, ServiceAddress

log = logging.getLogger("audit.client")

API: Final = "/api/v1/audit"
_AGENT: Final = f"task-audit-python/{version('task-audit')}"
#: A request may succeed when it is sent again, besides those with a status of 500 or more.
_RETRIED: Final = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS})
_AT_LEAST: Final = "Audit-Position-At-Least"
#: The answer is not from this service, if it does not say so itself.
_WRONG_SERVICE: Final = frozenset(
    {
        HTTPStatus.NOT_FOUND,
        HTTPStatus.METHOD_NOT_ALLOWED,
        HTTPStatus.PROXY_AUTHENTICATION_REQUIRED,
    }
)
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
#: Only these allow a client to send a body again to the new URL (RFC 9110, 15.4).
_SAME_REQUEST: Final = frozenset({307, 308})
_MAX_REDIRECTS: Final = 5
_LONGEST_RETRY_AFTER: Final = 60
#: Of a client, to its service. Each has one request at a time.
MOST_CONNECTIONS: Final = 10
#: After this number of doublings, every wait is as long as it may become.
_MOST_DOUBLINGS: Final = 30
_MOST_KEPT: Final = 64
_LARGEST_KEPT: Final = 128 * 1024

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Reply:
    """The response to an attempt. The names of its headers are in small letters."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Lost:
    """An attempt without a response. The service may have done what it asked."""

    reason: str
    may_recover: bool = True
    """Whether another attempt may have a response."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """A request to send."""

    method: str
    url: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes | None = field(repr=False)
    seconds: float
    """How long it may take until the response is complete."""


@dataclass(frozen=True, slots=True)
class Wait:
    """How many seconds to wait before going on."""

    seconds: float


#: What a client does, step by step, until it has the result.
Steps = Generator[Attempt | Wait, Reply | Lost | None, Result]


@dataclass(frozen=True, slots=True)
class Call(Generic[Result]):
    """A request to one route, and how to read the response to it."""

    method: str
    path: str
    """Below `/api/v1/audit`, encoded, with the query."""
    read: Callable[[Reply], Result]
    body: bytes | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)
    is_kept: bool = False
    """Whether the response is kept, to be asked for again under its ETag."""
    settle: Callable[[str], Call[Any]] | None = None
    """Makes a call that finds out whether the service has done an earlier attempt, whose response
    was lost. It gets the id of the request. The result of the call is the result of the request;
    None if the service has not done it; or the next such call."""


@dataclass(frozen=True, slots=True)
class Retries:
    """How often a request is sent, and how long everything may take."""

    tries: int = 5
    timeout: float = 30.0
    """For all attempts and the time between them, in seconds."""
    attempt_timeout: float = math.inf
    """For one attempt. It never has more than half of the time that is left, except the last."""
    first_wait: float = 0.2
    longest_wait: float = 10.0
    counts_retry_after: bool = True
    """Whether a response that says when to try again counts as a try."""
    needs_contact: bool = False
    """Whether a service that has never answered is asked again only if it says when."""

    def __post_init__(self) -> None:
        """Refuse what would send nothing, or without end.

        Raises:
            BadConfiguration: `tries` or `timeout` is too small.
        """
        if self.tries < 1 or not self.timeout > 0:
            raise BadConfiguration("tries must be at least 1, and timeout more than 0 seconds")

    @property
    def longest_poll(self) -> int:
        """How many seconds the service may wait for changes before it responds."""
        return int(min(20, self.timeout / 3, self.attempt_timeout / 2))

    def counts(self, retry_after: int | None) -> bool:
        """Return whether a failed attempt counts as a try."""
        return self.counts_retry_after or not retry_after

    def wait(self, attempts: int, retry_after: int | None) -> float:
        """Return how many seconds to wait before the next attempt.

        `attempts` is the number of failed attempts, and `retry_after` the header of the last
        response. Without this header, the wait is random between 0 and a limit that doubles with
        each attempt ("full jitter"), so that clients that failed together do not try again
        together.
        """
        if retry_after is not None:
            return float(min(retry_after, _LONGEST_RETRY_AFTER))
        doublings = min(attempts - 1, _MOST_DOUBLINGS)
        longest = min(self.longest_wait, self.first_wait * 2**doublings)
        return random.uniform(0, longest)  # noqa: S311 - no secret


class Wire:
    """Makes requests to one service, and decides what follows from the responses."""

    def __init__(
        self,
        address: ServiceAddress,
        retries: Retries,
        *,
        insecure: bool = False,
        read_your_writes: bool = True,
    ) -> None:
        """Let a key be sent over HTTP without TLS only to this host, unless `insecure`.

        With `read_your_writes`, what is read contains what was written before through this object.

        Raises:
            BadConfiguration: it would be sent over a network in plain text.
        """
        self.url = address.url.rstrip("/")
        self.retries = retries
        self._key: SecretStr | None = address.key
        self._origin = urlsplit(self.url)
        self._kept = _KeptReplies()
        self._positions = _Positions(is_used=read_your_writes)
        self._has_answered = False
        #: The size of the smallest body that was too large for the service or a proxy.
        self.too_large: float = float("inf")
        if address.key and not insecure and not _is_private(self._origin):
            raise BadConfiguration(
                f"{self.url} has no TLS, so others could read the API key: use https, or pass"
                " insecure=True if the network is trusted"
            )

    def __repr__(self) -> str:
        return f"Wire({self.url!r})"

    def exchange(self, call: Call[Result], end: float | None = None) -> Steps[Result]:
        """Send a request until there is a response that is not to be retried, and read it.

        A change whose response was lost may have been made. If another program has changed the
        task since, the change is refused when it is sent again. Then the events of the task say
        whether one of them is from this request.

        Raises:
            Problem: the service refuses the request; the class is the one that it names.
            Unavailable: there is no service, it does not answer, or it is another one.
        """
        end = end or time.monotonic() + self.retries.timeout
        request_id = str(uuid4())
        kept = self._kept.get(call) if call.is_kept else None
        headers = {
            **self._headers(call, request_id),
            **({"If-None-Match": kept[0]} if kept else {}),
        }
        attempts = 0
        tries = 1
        while True:
            attempts += 1
            written = self._positions.known()
            is_last = tries == self.retries.tries
            left = end - time.monotonic()
            seconds = min(self.retries.attempt_timeout, left if is_last else left / 2)
            at_least = {_AT_LEAST: ",".join(written)} if written and call.method == "GET" else {}
            reply = yield from self._follow(call, {**headers, **at_least}, seconds)
            if isinstance(reply, Reply):
                self._positions.note(reply, written)
                if kept and reply.status == HTTPStatus.NOT_MODIFIED:
                    reply = Reply(HTTPStatus.OK, {**kept[1].headers, **reply.headers}, kept[1].body)
                if HTTPStatus.OK <= reply.status < HTTPStatus.MULTIPLE_CHOICES:
                    return self._result(call, reply)
            problem, may_recover = self._failure(reply)
            if at_least and isinstance(problem, UnknownPosition):
                log.warning("%s: %s", self.url, problem.detail)
                self._positions.forget(written)
                attempts -= 1
                continue
            if attempts > 1 and call.settle and isinstance(problem, Conflict | PreconditionFailed):
                settled: Result | None = yield from self._settled(call.settle(request_id), end)
                if settled is not None:
                    return settled
            wait = self.retries.wait(attempts, problem.retry_after_seconds)
            if problem.retry_after_seconds is None and self.retries.needs_contact:
                may_recover = may_recover and self._has_answered
            if is_last or not may_recover or time.monotonic() + wait >= end:
                raise problem
            place = "" if self.url in problem.detail else f"{self.url}: "
            log.warning("%s%s; trying again in %.2g s", place, problem.detail, wait)
            tries += self.retries.counts(problem.retry_after_seconds)
            yield Wait(wait)

    def _result(self, call: Call[Result], reply: Reply) -> Result:
        try:
            result = call.read(reply)
        except ValueError:
            raise self._other_service() from None
        self._has_answered = True
        if call.is_kept:
            self._kept.put(call, reply)
        return result

    def _other_service(self) -> Unavailable:
        return Unavailable(f"{self.url} is not a task-audit service")

    def _settled(self, call: Call[Any], end: float) -> Steps[Any]:
        """Return the result of a change that an earlier attempt made; None if none did."""
        found: object = call
        while isinstance(found, Call):
            found = yield from self.exchange(found, end)
        return found

    def _headers(self, call: Call[Any], request_id: str) -> dict[str, str]:
        return {
            "Accept": "application/json",
            "Accept-Encoding": "gzip",
            "User-Agent": _AGENT,
            "X-Request-ID": request_id,
            **({} if call.body is None else {"Content-Type": "application/json"}),
            **_trace_headers(),
            **call.headers,
        }

    def _follow(
        self, call: Call[Any], headers: Mapping[str, str], seconds: float
    ) -> Steps[Reply | Lost]:
        """Send one attempt, and follow redirects that stay on the host of the service."""
        url = f"{self.url}{API}{call.path}"
        end = time.monotonic() + seconds
        for _ in range(_MAX_REDIRECTS + 1):
            left = max(end - time.monotonic(), 0.001)
            sent = {**headers, **self._authorization(url)}
            reply = yield Attempt(call.method, url, sent, call.body, left)
            assert reply is not None  # noqa: S101 - only a Wait has no reply
            if isinstance(reply, Lost) or reply.status not in _REDIRECTS:
                return reply
            url = self._next_url(call.method, url, reply)
        raise Unavailable(f"{self.url} redirects more than {_MAX_REDIRECTS} times")

    def _authorization(self, url: str) -> dict[str, str]:
        """Return the header with the key, if the URL is of the service itself."""
        if self._key is None or _origin(urlsplit(url)) != _origin(self._origin):
            return {}
        return {"Authorization": f"Bearer {self._key.get_secret_value()}"}

    def _next_url(self, method: str, url: str, reply: Reply) -> str:
        """Return the target of a redirect, if the request may be sent there."""
        try:
            target = urlsplit(urljoin(url, reply.headers.get("location", "")))
            port = target.port
        except ValueError:
            raise Unavailable(f"{url} redirects to an invalid URL ({reply.status})") from None
        host = f"[{target.hostname}]" if ":" in (target.hostname or "") else target.hostname or ""
        target = target._replace(netloc=host if port is None else f"{host}:{port}")
        what = f"{url} redirects to {target.geturl()} ({reply.status})"
        if method not in {"GET", "HEAD"} and reply.status not in _SAME_REQUEST:
            raise Unavailable(
                f"{what}, which a {method} does not follow: give the address of the service itself"
            )
        if target.scheme not in {"http", "https"} or not host:
            raise Unavailable(f"{what}, which is not HTTP")
        if target.scheme == "http" and self._origin.scheme == "https":
            raise Unavailable(f"{what}, without TLS")
        if target.hostname != self._origin.hostname:
            raise Unavailable(f"{what}, which is another host: use that URL if it is the service")
        return target.geturl()

    def _failure(self, reply: Reply | Lost) -> tuple[Problem, bool]:
        """Return the problem of an attempt, and whether another attempt may succeed."""
        if isinstance(reply, Reply):
            return self._problem(reply), _may_recover(reply)
        failed = "does not answer" if reply.may_recover else "cannot be reached"
        return Unavailable(f"{self.url} {failed}: {reply.reason}"), reply.may_recover

    def _problem(self, reply: Reply) -> Problem:
        """Return the problem of a response, as the class that the service names."""
        document = _document(reply.body)
        name = str(document.get("type", "")).removeprefix(TYPE)
        detail = str(document.get("detail") or f"status {reply.status}")
        kind = _kinds().get(name)
        if kind is None:
            if reply.status in _WRONG_SERVICE or reply.status < HTTPStatus.BAD_REQUEST:
                kind, detail = Unavailable, f"{self.url} refuses the request: {detail}"
            elif _may_recover(reply):
                kind, detail = Unavailable, f"{self.url} does not answer: {detail}"
            else:
                kind = next(
                    (kind for kind in _kinds().values() if kind.status == reply.status), Invalid
                )
        known = {"type", "title", "status", "detail", "instance", "errors"}
        errors = document.get("errors")
        problem = kind.__new__(kind)  # some make their detail of other arguments
        Problem.__init__(
            problem,
            detail,
            errors=errors if isinstance(errors, list) else None,
            retry_after_seconds=_retry_after(reply.headers),
            members={name: value for name, value in document.items() if name not in known},
        )
        problem.request_id = reply.headers.get("x-request-id")
        return problem


class _Positions:
    """The positions of the newest writes, which reads have to contain.

    A position contains every write that was confirmed before its own was sent. So one is enough
    after writes one after the other. Of writes at the same time, all are kept.
    """

    def __init__(self, *, is_used: bool) -> None:
        self._is_used = is_used
        self._lock = Lock()
        #: The one that came last is the last.
        self._positions: dict[str, None] = {}

    def known(self) -> Sequence[str]:
        """Return the positions that a read has to contain now."""
        with self._lock:
            return tuple(self._positions)

    def note(self, reply: Reply, before: Sequence[str]) -> None:
        """Keep the position of a write in place of those that were known before it was sent."""
        position = reply.headers.get("audit-position")
        if position is None or not self._is_used:
            return
        with self._lock:
            for earlier in (*before, position):
                self._positions.pop(earlier, None)
            self._positions[position] = None
            if len(self._positions) > MOST_CONNECTIONS:
                # At least one of the others was sent after this one was confirmed.
                del self._positions[next(iter(self._positions))]

    def forget(self, positions: Sequence[str]) -> None:
        """Forget positions that the service does not know."""
        with self._lock:
            for position in positions:
                self._positions.pop(position, None)


class _KeptReplies:
    """The last responses that have an ETag. The service confirms each before it is used again."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._replies: OrderedDict[str, tuple[str, Reply]] = OrderedDict()

    def get(self, call: Call[Any]) -> tuple[str, Reply] | None:
        """Return the ETag and the response of the same request, if it is kept."""
        with self._lock:
            return self._replies.get(call.path)

    def put(self, call: Call[Any], reply: Reply) -> None:
        """Keep a response, and forget the oldest one if there are many."""
        etag = reply.headers.get("etag")
        if etag is None or len(reply.body) > _LARGEST_KEPT:
            return
        with self._lock:
            self._replies[call.path] = etag, reply
            self._replies.move_to_end(call.path)
            if len(self._replies) > _MOST_KEPT:
                self._replies.popitem(last=False)


def _kinds() -> dict[str, type[Problem]]:
    """Return the problems that a service names, by name."""
    found = Problem.__subclasses__()
    for kind in found:
        found += kind.__subclasses__()
    return {kind.name: kind for kind in found if kind.name != Problem.name}


def _may_recover(reply: Reply) -> bool:
    return reply.status >= HTTPStatus.INTERNAL_SERVER_ERROR or reply.status in _RETRIED


def _document(body: bytes) -> dict[str, Any]:
    try:
        document = from_json(body)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _retry_after(headers: Mapping[str, str]) -> int | None:
    """Return the seconds of `Retry-After`, which may also be a date; None if it has neither."""
    value = headers.get("retry-after", "").strip()
    if value.isdecimal():
        return int(value)
    try:
        then = parsedate_to_datetime(value)
        # The clock of the service counts, and its responses say what it shows.
        now = parsedate_to_datetime(headers["date"]) if "date" in headers else datetime.now(UTC)
        return max(0, round((then - now).total_seconds()))
    except (ValueError, TypeError):
        return None


def _is_private(url: SplitResult) -> bool:
    """Return whether a request to the URL is encrypted, or stays on this host."""
    if url.scheme == "https" or url.hostname == "localhost":
        return True
    try:
        return ip_address(url.hostname or "").is_loopback
    except ValueError:
        return False


def _origin(url: SplitResult) -> tuple[str, str | None, int | None]:
    default = {"http": 80, "https": 443}.get(url.scheme)
    return url.scheme, url.hostname, url.port or default


def _trace_headers() -> dict[str, str]:
    """Return `traceparent` if the program traces what it does. If not, nothing is imported."""
    headers: dict[str, str] = {}
    if "opentelemetry.trace" in sys.modules:
        from opentelemetry.propagate import inject  # noqa: PLC0415 - as above

        inject(headers)
    return headers
