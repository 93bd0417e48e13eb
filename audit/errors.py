"""The expected failures, as exceptions that know how HTTP names them (RFC 9457)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, TypedDict


class FieldError(TypedDict):
    """What is wrong with one parameter or member."""

    field: str
    detail: str


class Problem(Exception):
    """A failure with a meaning to the caller. `title` never varies; `detail` is about this one."""

    status: ClassVar[int] = 500
    name: ClassVar[str] = "internal"
    title: ClassVar[str] = "The service failed; its log says why"

    def __init__(
        self,
        detail: str,
        *,
        errors: list[FieldError] | None = None,
        retry_after_seconds: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = errors
        self.retry_after_seconds = retry_after_seconds
        self.headers = headers or {}


class Malformed(Problem):
    """The request cannot be read: broken JSON or percent-encoding, or a NUL character."""

    status = 400
    name = "malformed"
    title = "The request cannot be read"


class Unauthenticated(Problem):
    """No key is sent, or one that is not good."""

    status = 401
    name = "unauthenticated"
    title = "A valid key is needed"


class Forbidden(Problem):
    """The key may not do this: a scope is missing, or it is bound to another project."""

    status = 403
    name = "forbidden"
    title = "The key may not do this"


class TaskNotFound(Problem):
    """No task has this id."""

    status = 404
    name = "task-not-found"
    title = "No such task"


class BodyTooSlow(Problem):
    """The body did not arrive within the time of a request."""

    status = 408
    name = "body-too-slow"
    title = "The body did not arrive in time"


class Conflict(Problem):
    """An id recorded with other content, or a change that the life of a task forbids."""

    status = 409
    name = "conflict"
    title = "The history cannot be changed so"


class PreconditionFailed(Problem):
    """The task is not, or no longer, in the state that `If-Match` names."""

    status = 412
    name = "precondition-failed"
    title = "The task is not in the expected state"


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
    """The content type is not one that the route takes."""

    status = 415
    name = "unsupported-media-type"
    title = "The content type is not supported"


class Invalid(Problem):
    """Parameters or members that are unknown, out of bounds or of the wrong type."""

    status = 422
    name = "invalid"
    title = "Parameters or fields are not valid"


class TooManyRequests(Problem):
    """More requests than this client may send."""

    status = 429
    name = "too-many-requests"
    title = "Too many requests"


class Unavailable(Problem):
    """The database does not answer or is not migrated, or the service is overloaded."""

    status = 503
    name = "unavailable"
    title = "The service cannot answer now"


class TimedOut(Problem):
    """The query, or the request, ran into its time limit."""

    status = 504
    name = "timed-out"
    title = "The query took too long"
