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
    from audit.history.service import AuditService
    from audit.history.states import State
    from audit.history.task import NewTask, Recorded, Task, TaskDocument, TaskPage, TaskSummary
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
#: tenths of a second: the command `audit` handles Ctrl-C before. The last two need the service.
_MODULES = (
    "audit.errors",
    "audit.settings",
    "audit.history.states",
    "audit.history.task",
    "audit.history.events",
    "audit.postgres.pool",
    "audit.history.service",
)


def __getattr__(name: str) -> Any:
    from importlib import import_module  # noqa: PLC0415 - as above

    if name in __all__:
        try:
            for module in map(import_module, _MODULES):
                if hasattr(module, name):
                    return getattr(module, name)
        except ModuleNotFoundError as missing:
            raise ModuleNotFoundError(
                f"audit.{name} needs {missing.name}: pip install 'task-audit[server]'",
                name=missing.name,
            ) from missing
    raise AttributeError(f"module 'audit' has no attribute {name!r}")
