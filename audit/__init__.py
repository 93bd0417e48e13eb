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

#: The modules of these names. They are imported when they are used, which takes some tenths of a
#: second: the command `audit` handles Ctrl-C before.
_MODULES = {
    "open_pool": "audit.postgres.pool",
    "Conflict": "audit.errors",
    "FieldError": "audit.errors",
    "Forbidden": "audit.errors",
    "Invalid": "audit.errors",
    "Malformed": "audit.errors",
    "PreconditionFailed": "audit.errors",
    "Problem": "audit.errors",
    "TaskNotFound": "audit.errors",
    "TimedOut": "audit.errors",
    "Unavailable": "audit.errors",
    "HistoryPage": "audit.history.events",
    "MemberChange": "audit.history.events",
    "TaskEvent": "audit.history.events",
    "TaskVersion": "audit.history.events",
    "NewTask": "audit.history.task",
    "Task": "audit.history.task",
    "TaskDocument": "audit.history.task",
    "TaskPage": "audit.history.task",
    "TaskSummary": "audit.history.task",
    "AuditService": "audit.history.service",
    "Recorded": "audit.history.recording",
    "Settings": "audit.settings",
    "State": "audit.history.states",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'audit' has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415 - as above

    return getattr(import_module(_MODULES[name]), name)
