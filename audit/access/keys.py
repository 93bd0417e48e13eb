"""API keys: created, listed and revoked in the database, and checked in memory."""

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

#: Lets people and secret scanners recognise a key.
KEY_PREFIX: Final = "taskaudit_"
_SECRET_BYTES: Final = 32
_TIMEOUT_SECONDS: Final = 5
_NAME: Final = re.compile(r"[A-Za-z0-9._@-]{1,100}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Key:
    """What the database stores about a key, without the secret."""

    identity: Identity
    created_at: datetime
    revoked_at: datetime | None
    """None: the key is not revoked."""
    good_until: float
    """On the monotonic clock of this process; infinite if the key does not expire."""

    def has_expired(self) -> bool:
        """Whether the time of expiry has passed."""
        return self.good_until < time.monotonic()


class Keys:
    """All keys as of the last read. A check needs no query."""

    def __init__(self, by_digest: Mapping[bytes, Key]) -> None:
        self._by_digest = by_digest

    @property
    def are_none(self) -> bool:
        """Whether no key was ever created."""
        return not self._by_digest

    def check(self, secret: str) -> Key:
        """Return the key with this secret.

        Raises:
            Unauthenticated: the key is unknown, revoked or expired.
        """
        key = self._by_digest.get(digest_of(secret))
        if key is None:
            raise refused("the key is unknown")
        if key.revoked_at is not None:
            raise refused(f"the key {key.identity.name} is revoked")
        if key.has_expired():
            raise refused(f"the key {key.identity.name} has expired")
        return key


def digest_of(secret: str) -> bytes:
    """Return the digest that is stored. The secret has 256 random bits, so a fast hash is safe."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()


async def read_keys(pool: Pool, timeout_seconds: float = _TIMEOUT_SECONDS) -> Keys:
    """Read all keys.

    Raises:
        Unavailable: the database does not answer.
    """
    return Keys(dict(await _read(pool, timeout_seconds)))


async def list_keys(pool: Pool) -> list[Key]:
    """Return all keys ever created, oldest first."""
    return [key for _, key in await _read(pool, _TIMEOUT_SECONDS)]


async def create_key(
    pool: Pool,
    name: str,
    scopes: frozenset[Scope],
    project_id: UUID | None = None,
    expires: timedelta | datetime | None = None,
) -> tuple[str, datetime | None]:
    """Create a key; return its secret, which is shown only once, and the time of expiry if any.

    Raises:
        Invalid: the name is taken or not allowed, there is no scope, or `expires` has passed.
    """
    if not _NAME.fullmatch(name):
        raise Invalid(f"{name!r} is not a valid name: use 1 to 100 letters, digits and . _ @ -")
    if not scopes:
        raise Invalid("a key needs at least one scope")
    secret = KEY_PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
    lasting = expires if isinstance(expires, timedelta) else None
    at = expires if isinstance(expires, datetime) else None
    if at is not None and at <= datetime.now(at.tzinfo):
        raise Invalid("the time of expiry has already passed")
    async with acquired(pool, Deadline(_TIMEOUT_SECONDS)) as connection:
        row = await connection.fetchrow(
            statements.CREATE_KEY, name, digest_of(secret), sorted(scopes), project_id, lasting, at
        )
    if row is None:
        raise Invalid(f"the name {name!r} is already used by a key, which may be revoked")
    return secret, row["expires_at"]


async def revoke_key(pool: Pool, name: str) -> datetime:
    """Revoke a key; return when it was revoked first.

    Raises:
        Invalid: no key has this name.
    """
    async with acquired(pool, Deadline(_TIMEOUT_SECONDS)) as connection:
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
    # Expiry follows the clock of the database, not the one of this machine.
    left = row["seconds_left"]
    return Key(
        Identity(
            row["name"],
            frozenset(Scope(scope) for scope in row["scopes"]),
            row["project_id"],
            row["key_id"],
            row["expires_at"],
        ),
        row["created_at"],
        row["revoked_at"],
        float("inf") if left is None else time.monotonic() + left,
    )
