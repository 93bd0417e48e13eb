"""The expected failures as exceptions, with their HTTP status and problem type (RFC 9457)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final, TypedDict

#: A problem type is this and the name of the problem.
TYPE: Final = "urn:task-audit:problem:"


class FieldError(TypedDict):
    """What is wrong with one parameter or member."""

    field: str
    detail: str


class Problem(Exception):
    """An expected failure, whose text is sent to the client or shown to the caller.

    `title` is the same for all failures of a class, and `detail` describes this one.
    """

    status: ClassVar[int] = 500
    name: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"

    def __init__(
        self,
        detail: str,
        *,
        errors: list[FieldError] | None = None,
        retry_after_seconds: int | None = None,
        headers: Mapping[str, str] | None = None,
        members: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = errors
        self.retry_after_seconds = retry_after_seconds
        self.headers = headers or {}
        self.members = members or {}
        """Further members of the problem document."""
        self.request_id: str | None = None
        """The id of the request that a service refused, as in its log; set by a client."""

    def __str__(self) -> str:
        return self.detail

    def document(self, instance: str | None = None) -> dict[str, Any]:
        """Return the problem document (RFC 9457). `instance` is the id of the request, if any."""
        document = {
            "type": TYPE + self.name,
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            **({} if instance is None else {"instance": instance}),
            **self.members,
        }
        return {**document, "errors": self.errors} if self.errors else document


class Malformed(Problem):
    """The request cannot be read: broken JSON or percent-encoding, or a NUL character."""

    status = 400
    name = "malformed"
    title = "The request cannot be read"


class Unauthenticated(Problem):
    """The request has no API key, or one that is not valid."""

    status = 401
    name = "unauthenticated"
    title = "A valid API key is required"


class Forbidden(Problem):
    """The key lacks a scope, or is bound to another project."""

    status = 403
    name = "forbidden"
    title = "The API key does not permit this"


class TaskNotFound(Problem):
    """No task has this id."""

    status = 404
    name = "task-not-found"
    title = "Task not found"


class ExportNotFound(Problem):
    """No export has this id, or it was made with another API key."""

    status = 404
    name = "export-not-found"
    title = "Export not found"


class BodyTooSlow(Problem):
    """The body did not arrive within the time limit of a request."""

    status = 408
    name = "body-too-slow"
    title = "The body did not arrive in time"


class Conflict(Problem):
    """The id is recorded with other content, or the state of the task forbids the change."""

    status = 409
    name = "conflict"
    title = "The request conflicts with the recorded history"


class UnknownPosition(Problem):
    """No server can have the state of an `Audit-Position`: a failover has lost it, maybe."""

    status = 409
    name = "unknown-position"
    title = "The position is not known"


class PositionGone(Problem):
    """The log ends before this position, as it does when an older backup was restored."""

    status = 410
    name = "position-gone"
    title = "The log does not reach this position"


class PreconditionFailed(Problem):
    """The task does not have the ETag that `If-Match` names."""

    status = 412
    name = "precondition-failed"
    title = "The task has changed"


class BodyTooLarge(Problem):
    """The body is over the limit."""

    status = 413
    name = "body-too-large"
    title = "The body is too large"


class UrlTooLong(Problem):
    """The URL is over the limit."""

    status = 414
    name = "url-too-long"
    title = "The URL is too long"


class HeadersTooLarge(Problem):
    """A header field is over the limit, or there are too many of them."""

    status = 431
    name = "headers-too-large"
    title = "The header fields are too large"


class UnsupportedMedia(Problem):
    """The route does not accept the content type."""

    status = 415
    name = "unsupported-media-type"
    title = "The content type is not supported"


class Invalid(Problem):
    """Parameters or fields are unknown, out of bounds or of the wrong type."""

    status = 422
    name = "invalid"
    title = "Parameters or fields are not valid"


class TooMany(Invalid):
    """More tasks match than a statistic may group one by one."""

    name = "too-many"
    title = "Too many tasks match"

    @classmethod
    def found(cls, matching: int, at_most: int, fits: str) -> TooMany:
        """Return the problem. `fits` is a start of the window with which few enough tasks match."""
        return cls(
            f"{matching:,} tasks match, and at most {at_most:,} can be read one by one:"
            f" ask for those since {fits}",
            members={"matching": matching, "at_most": at_most, "fits": fits},
        )

    @property
    def matching(self) -> int:
        """How many tasks match."""
        return int(str(self.members["matching"]))


class TooManyRequests(Problem):
    """The client has exceeded its rate limit."""

    status = 429
    name = "too-many-requests"
    title = "Too many requests"


class Unavailable(Problem):
    """The database does not answer or is not migrated, or the service is overloaded."""

    status = 503
    name = "unavailable"
    title = "The service is temporarily unavailable"


class UnsuitableDatabase(Unavailable):
    """The server answers, but the service would not work correctly on it."""


class SchemaNotCurrent(Unavailable):
    """The database lacks migrations, and the service may not apply them."""


class ReadOnly(Unavailable):
    """The database server accepts no writes, because it is a standby or is set to read-only."""

    name = "read-only"
    title = "The database accepts no writes"

    @property
    def primary_url(self) -> str | None:
        """The URL of the service on the primary, if the service that refused knows it."""
        url = self.members.get("primary_url")
        return None if url is None else str(url)


class TooManyFeeds(Unavailable):
    """As many readers follow the feed in this process as it may serve."""

    name = "too-many-feeds"
    title = "Too many readers follow the feed"


class TimedOut(Problem):
    """The query or the request exceeded its time limit."""

    status = 504
    name = "timed-out"
    title = "The request took too long"
