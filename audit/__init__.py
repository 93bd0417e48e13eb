"""Records the task history of an orchestrator in PostgreSQL and answers questions about it."""

from __future__ import annotations

# Importing `typing` would take as long as all that happens before `__main__`.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from audit.errors import (
        Conflict,
        FieldError,
        Forbidden,
        Invalid,
        Malformed,
        PreconditionFailed,
        Problem,
        TaskNotFound,
        TimedOut,
        Unavailable,
    )
    from audit.history.events import HistoryPage, MemberChange, TaskEvent, TaskVersion
    from audit.history.recording import Recorded
    from audit.history.service import AuditService
    from audit.history.states import State
    from audit.history.task import NewTask, Task, TaskDocument, TaskPage, TaskSummary
    from audit.postgres.pool import open_pool
    from audit.settings import Settings

__all__ = [
    "AuditService",
    "open_pool",
    "Settings",
    "HistoryPage",
    "MemberChange",
    "NewTask",
    "Recorded",
    "State",
    "Task",
    "TaskDocument",
    "TaskEvent",
    "TaskPage",
    "TaskSummary",
    "TaskVersion",
    # What its methods raise.
    "Problem",
    "Invalid",
    "FieldError",
    "Malformed",
    "TaskNotFound",
    "Conflict",
    "PreconditionFailed",
    "Forbidden",
    "Unavailable",
    "TimedOut",
]

#: The modules that define these names. They are imported when a name is used, which takes some
#: tenths of a second: the command `audit` handles Ctrl-C before.
_MODULES = (
    "audit.errors",
    "audit.settings",
    "audit.history.states",
    "audit.postgres.pool",
    "audit.history.task",
    "audit.history.events",
    "audit.history.recording",
    "audit.history.service",
)


def __getattr__(name: str) -> Any:
    from importlib import import_module  # noqa: PLC0415 - as above

    if name in __all__:
        for module in map(import_module, _MODULES):
            if hasattr(module, name):
                return getattr(module, name)
    raise AttributeError(f"module 'audit' has no attribute {name!r}")
