"""The states of a task, in their order."""

from __future__ import annotations

from enum import StrEnum
from typing import Final


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

    def is_before(self, other: State) -> bool:
        """Whether this state is above the other one in the list."""
        return _ORDER.index(self) < _ORDER.index(other)


_ORDER = tuple(State)
_TERMINAL = frozenset({State.COMPLETED, State.FAILED, State.REJECTED})
#: What the error says about any other text.
MUST_BE_STATE: Final = f"must be one of {', '.join(State)}"
