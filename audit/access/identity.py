"""The identity behind a request: its scopes, and the project it is limited to."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final
from uuid import UUID

from audit.errors import Forbidden, Problem, Unauthenticated


class Insecure(Problem):
    """The service has no keys and would listen on an address that other hosts can reach."""


class Scope(StrEnum):
    """What a key allows. No scope includes another."""

    READ = "read"
    """Read tasks."""
    RECORD = "record"
    """Record and change tasks."""
    ADMIN = "admin"
    """Read the metrics."""


class Via(StrEnum):
    """What a request is authenticated by."""

    KEY = "key"
    """An API key in `Authorization`."""
    TOKEN = "token"  # noqa: S105 - the name of a way, not a secret
    """A JSON Web Token in `Authorization`."""
    SESSION = "session"
    """A key or token in the cookie of the web page."""
    NO_KEY = "nobody"
    """Nothing, because no API key exists and the service requires none."""


@dataclass(frozen=True, slots=True)
class Identity:
    """The holder of an API key or of a token."""

    name: str
    scopes: frozenset[Scope]
    project_id: UUID | None = None
    """The only project whose tasks are visible and can be recorded; None: all projects."""
    number: int | None = None
    """The number of the rate limit; None: no rate limit applies."""
    expires_at: datetime | None = None
    """When the key or token expires; None: never."""

    @property
    def actor(self) -> str | None:
        """The name to log and to store with events; None if the service requires no API key."""
        return None if self is ANYONE else self.name

    def require(self, scope: Scope) -> None:
        """Raise Forbidden if the scope is missing."""
        if scope not in self.scopes:
            raise Forbidden(
                f"this needs the scope {scope}; {self.name} has"
                f" {', '.join(sorted(self.scopes)) or 'none'}",
                headers={"WWW-Authenticate": f'Bearer error="insufficient_scope", scope="{scope}"'},
            )

    def require_project(self, project_id: UUID | None) -> None:
        """Raise Forbidden if the identity is limited to another project."""
        if self.project_id not in (None, project_id):
            raise Forbidden(f"{self.name} has access to the project {self.project_id} only")


#: Used as long as no key exists and no issuer of tokens is configured.
ANYONE: Final = Identity("anyone", frozenset(Scope))


def refused(why: str) -> Unauthenticated:
    """Return the problem for a key or token that is not valid (RFC 6750, 3.1)."""
    return Unauthenticated(why, headers={"WWW-Authenticate": 'Bearer error="invalid_token"'})
