"""The keys that the database keeps: made, listed, revoked, and checked from memory."""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final
from uuid import UUID

from audit.access.identity import Identity, Scope, refused
from audit.deadlines import Deadline
from audit.errors import Invalid
from audit.postgres import statements
from audit.postgres.pool import acquired

if TYPE_CHECKING:
    import asyncpg

    from audit.postgres.pool import Pool

#: Tells people, and programs that look for leaked secrets, what it is.
KEY_PREFIX: Final = "taskaudit_"
_SECRET_BYTES: Final = 32
_PATIENCE_SECONDS: Final = 5
_NAME: Final = re.compile(r"[A-Za-z0-9._@-]{1,100}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Key:
    """A key as it is kept: never the key itself."""

    identity: Identity
    created_at: datetime
    expires_at: datetime | None
    """None: never."""
    revoked_at: datetime | None
    """None: it is not."""
    good_until: float
    """By this process's monotonic clock; infinite: for ever."""

    def has_expired(self) -> bool:
        """Whether it was good for a while, and is no more."""
        return self.good_until < time.monotonic()


class Keys:
    """All keys, as they were read last: to check one asks the database nothing."""

    def __init__(self, kept: Mapping[bytes, Key]) -> None:
        self._kept = kept

    @property
    def are_none(self) -> bool:
        """Whether none has ever been made."""
        return not self._kept

    def check(self, key: str) -> Key:
        """Return what is kept of a key.

        Raises:
            Unauthenticated: it is unknown, revoked or expired.
        """
        kept = self._kept.get(digest_of(key))
        if kept is None:
            raise refused("the key is unknown")
        if kept.revoked_at is not None:
            raise refused(f"the key {kept.identity.name} is revoked")
        if kept.has_expired():
            raise refused(f"the key {kept.identity.name} has expired")
        return kept


def digest_of(key: str) -> bytes:
    """Return what is kept of a key. It is 256 random bits: a slow hash would add nothing."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


async def read_keys(pool: Pool, timeout_seconds: float = _PATIENCE_SECONDS) -> Keys:
    """Return all keys as they are now.

    Raises:
        Unavailable: the database does not answer.
    """
    return Keys(dict(await _read(pool, timeout_seconds)))


async def list_keys(pool: Pool) -> list[Key]:
    """Return all keys ever made, the oldest first."""
    return [key for _, key in await _read(pool, _PATIENCE_SECONDS)]


async def create_key(
    pool: Pool,
    name: str,
    scopes: frozenset[Scope],
    project_id: UUID | None = None,
    expires: timedelta | datetime | None = None,
) -> tuple[str, datetime | None]:
    """Make a key; return it, for the only time, and when it expires. None: never.

    Raises:
        Invalid: the name is taken, or not one; there is no scope; it would have expired already.
    """
    if not _NAME.fullmatch(name):
        raise Invalid(f"{name!r} is no name: 1 to 100 letters, digits and . _ @ - make one")
    if not scopes:
        raise Invalid("a key without a scope may do nothing")
    key = KEY_PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
    lasting = expires if isinstance(expires, timedelta) else None
    at = expires if isinstance(expires, datetime) else None
    if at is not None and at <= datetime.now(at.tzinfo):
        raise Invalid("the time of expiry has passed already")
    async with acquired(pool, Deadline(_PATIENCE_SECONDS)) as connection:
        row = await connection.fetchrow(
            statements.CREATE_KEY, name, digest_of(key), sorted(scopes), project_id, lasting, at
        )
    if row is None:
        raise Invalid(f"there is a key {name!r} already, or was; names are not used twice")
    return key, row["expires_at"]


async def revoke_key(pool: Pool, name: str) -> datetime:
    """Have a key refused; return since when it is.

    Raises:
        Invalid: there is none of that name.
    """
    async with acquired(pool, Deadline(_PATIENCE_SECONDS)) as connection:
        row = await connection.fetchrow(statements.REVOKE_KEY, name)
    if row is None:
        raise Invalid(f"there is no key {name!r}")
    revoked_at: datetime = row["revoked_at"]
    return revoked_at


async def _read(pool: Pool, timeout_seconds: float) -> list[tuple[bytes, Key]]:
    async with acquired(pool, Deadline(timeout_seconds)) as connection:
        rows = await connection.fetch(statements.LIST_KEYS, timeout=timeout_seconds)
    return [(row["digest"], _key(row)) for row in rows]


def _key(row: asyncpg.Record) -> Key:
    # The database's clock counts, whatever this machine's says.
    left = row["seconds_left"]
    return Key(
        Identity(
            row["name"],
            frozenset(Scope(scope) for scope in row["scopes"]),
            row["project_id"],
            row["key_id"],
        ),
        row["created_at"],
        row["expires_at"],
        row["revoked_at"],
        float("inf") if left is None else time.monotonic() + left,
    )
