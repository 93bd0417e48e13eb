"""Records the task history of an orchestrator in PostgreSQL and answers questions about it."""

from audit.database import open_pool
from audit.errors import (
    Conflict,
    FieldError,
    Forbidden,
    Invalid,
    Malformed,
    Problem,
    TaskNotFound,
    TimedOut,
    Unavailable,
)
from audit.models import NewTask, Task, TaskDocument, TaskPage, TaskSummary
from audit.service import AuditService, Recorded
from audit.settings import Settings
from audit.states import State

__all__ = [
    "AuditService",
    "open_pool",
    "Settings",
    "NewTask",
    "Recorded",
    "State",
    "Task",
    "TaskDocument",
    "TaskPage",
    "TaskSummary",
    # What its methods raise.
    "Problem",
    "Invalid",
    "FieldError",
    "Malformed",
    "TaskNotFound",
    "Conflict",
    "Forbidden",
    "Unavailable",
    "TimedOut",
]
