"""Clients for programs that record tasks, or ask about them, through a running service."""

from audit.client.aio import AsyncChanges, AsyncClient, AsyncPages, AsyncTaskPages
from audit.client.export_file import WrongFile
from audit.client.models import Caller, ExportManifest, FeedChange, Task, TaskPage
from audit.client.sync import Changes, Client, Pages, TaskPages
from audit.errors import (
    BodyTooLarge,
    Conflict,
    Forbidden,
    Invalid,
    PositionGone,
    PreconditionFailed,
    Problem,
    TaskNotFound,
    TimedOut,
    TooManyRequests,
    Unauthenticated,
    Unavailable,
    UnknownPosition,
)
from audit.history.events import HistoryBody, TaskEvent
from audit.history.states import State
from audit.history.statistics_body import Durations, Facets, Histogram
from audit.history.task import NewTask, RecordedBody, TaskSummary
from audit.profiles import BadConfiguration

__all__ = [
    "AsyncClient",
    "Client",
    # What their methods take and return.
    "AsyncChanges",
    "AsyncPages",
    "AsyncTaskPages",
    "Caller",
    "Changes",
    "Durations",
    "ExportManifest",
    "Facets",
    "FeedChange",
    "Histogram",
    "HistoryBody",
    "NewTask",
    "Pages",
    "RecordedBody",
    "State",
    "Task",
    "TaskEvent",
    "TaskPage",
    "TaskPages",
    "TaskSummary",
    # What they raise.
    "BadConfiguration",
    "BodyTooLarge",
    "Conflict",
    "Forbidden",
    "Invalid",
    "PositionGone",
    "PreconditionFailed",
    "Problem",
    "TaskNotFound",
    "TimedOut",
    "TooManyRequests",
    "Unauthenticated",
    "Unavailable",
    "UnknownPosition",
    "WrongFile",
]
