"""What the methods of the clients return, besides the models that the service shares."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import Field

from audit.history import feed_body, task
from audit.history.task import Output, TaskPageBody


class Task(task.Task):
    """A task with all its members."""

    etag: str | None = Field(default=None, exclude=True)
    """The entity tag of this state of the task, for the argument `if_match` of `update`."""


class TaskPage(TaskPageBody):
    """A page of a list, newest first."""

    feed_position: int | None = Field(default=None, exclude=True)
    """The position in the feed that belongs to the page: a feed that begins there has each later
    change once."""


class FeedChange(feed_body.FeedChange):
    """A task that was recorded or changed."""

    @property
    def position(self) -> int:
        """The position after this change: a reader that begins there gets the next ones."""
        return self.n + 1


class ChangesPage(feed_body.ChangesBody):
    """Consecutive changes, oldest first."""

    changes: list[FeedChange]  # type: ignore[assignment]


class Caller(Output):
    """Who sends the requests, and what the service is."""

    name: str | None
    """The name of the API key, or the subject of the token. None if the service requires none."""
    scopes: list[str]
    """What the caller may do: `read`, `record` and `admin`."""
    project_id: UUID | None
    """The only project that the caller can read and record; None means all projects."""
    expires_at: datetime | None
    """When the key or token expires; None means never."""
    via: str
    """What the request is authenticated by: an API `key`, a `token`, or the `session` of the web
    page. It is `nobody` if no API key exists, so that the service accepts requests without one."""
    version: str
    """The version of the service."""
    trace_url: str | None
    """The URL of a trace, with `{trace_id}` in place of its id; None if none is configured."""


class ExportManifest(Output):
    """What the file of an export contains, as `FILE.manifest.json` has it."""

    format: str
    """`ndjson` or `csv`."""
    tasks: int
    bytes: int
    """The size of the file, before compression."""
    sha256: str
    """The SHA-256 of these bytes in hexadecimal digits."""
    complete: bool
    one_snapshot: bool
    """Whether all tasks were read at one moment. They were not if the export was resumed."""
    recorded: bool
    """Whether the service has a manifest of each part."""
    params: dict[str, str | list[str]]
    """The parameters of the export, with the time that `last` or `days` meant."""
    parts: list[dict[str, Any]]
    """The manifest of each part: of one if the export was never cut off."""
