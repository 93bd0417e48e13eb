"""The states of a task, in their order."""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """A task moves down this list, never up; from `completed` on it never moves again."""

    PENDING = "pending"
    APPROVED = "approved"
    EXECUTING = "executing"
    COMPLETED = "completed"
    FAILED = "failed"
    REJECTED = "rejected"

    @property
    def is_terminal(self) -> bool:
        """Whether a task in this state is immutable."""
        return self in _TERMINAL


_TERMINAL = frozenset({State.COMPLETED, State.FAILED, State.REJECTED})
