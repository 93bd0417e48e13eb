"""Who asks, and what they may do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final
from uuid import UUID

from audit.errors import Forbidden, Problem, Unauthenticated


class Insecure(Problem):
    """Without any key the service would answer anyone, on an address that others reach."""


class Scope(StrEnum):
    """What a key may do. None contains another."""

    READ = "read"
    """Ask questions."""
    RECORD = "record"
    """Record tasks and move them on."""
    ADMIN = "admin"
    """See how the service does."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks."""

    name: str
    scopes: frozenset[Scope]
    project_id: UUID | None = None
    """The only project whose tasks are seen and recorded; None: all."""
    number: int | None = None
    """What its rate is counted under; None: it is not."""

    def require(self, scope: Scope) -> None:
        """Raise Forbidden where the scope is missing."""
        if scope not in self.scopes:
            raise Forbidden(
                f"this needs the scope {scope}; {self.name} has"
                f" {', '.join(sorted(self.scopes)) or 'none'}",
                headers={"WWW-Authenticate": f'Bearer error="insufficient_scope", scope="{scope}"'},
            )


#: Where nobody has made a key yet.
ANYONE: Final = Identity("anyone", frozenset(Scope))


def refused(why: str) -> Unauthenticated:
    """Return what tells a client that its token is no good (RFC 6750, 3.1)."""
    return Unauthenticated(why, headers={"WWW-Authenticate": 'Bearer error="invalid_token"'})
