"""Where a crawl stands, as an opaque token.

A token is URL-safe base64 of: version, microseconds of the window's clock (0: none), microseconds
of the last task's `created_at`, its id, the total of the first page (-1: none), and a checksum over
all of it and the filters. The checksum rejects tokens that this service did not make, or made for
other filters. It is no secret, since a token contains nothing that its bearer may not ask for.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import struct
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from audit.errors import Invalid

_VERSION = 1
_LAYOUT = struct.Struct(">Bqq16sq")
_CHECKSUM_BYTES = 8
_NO_TOTAL = -1
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
#: No task is of a later time; one that someone made up could be of any.
_LAST = (datetime(3000, 1, 1, tzinfo=UTC) - _EPOCH) // _MICROSECOND


@dataclass(frozen=True, slots=True)
class Cursor:
    """The place after one task, in one window of time."""

    clock: datetime | None
    """What `days` count back from; None without them."""
    created_at: datetime
    task_id: UUID
    total: int | None
    """Of the first page; None: it was not asked for."""

    def encode(self, filters: bytes) -> str:
        """Return the token; `filters` are what it is bound to."""
        payload = _LAYOUT.pack(
            _VERSION,
            (self.clock - _EPOCH) // _MICROSECOND if self.clock else 0,
            (self.created_at - _EPOCH) // _MICROSECOND,
            self.task_id.bytes,
            _NO_TOTAL if self.total is None else self.total,
        )
        return base64.urlsafe_b64encode(payload + _checksum(payload, filters)).decode().rstrip("=")


def decode(token: str, filters: bytes, *, has_clock: bool) -> Cursor:
    """Return what `encode` was given with the same filters.

    `has_clock` says whether the filters count back from a clock. A token for them must carry one,
    or its pages would have different windows; a token for others must not.

    Raises:
        Invalid: the token is none of ours, or was given for other filters.
    """
    refused = Invalid(
        "the cursor is not one of this service, or belongs to other filters",
        errors=[
            {"field": "cursor", "detail": "must be the next_cursor of a page of the same filters"}
        ],
    )
    try:
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise refused from None
    payload, checksum = raw[:-_CHECKSUM_BYTES], raw[-_CHECKSUM_BYTES:]
    if (
        len(payload) != _LAYOUT.size
        or payload[0] != _VERSION
        or checksum != _checksum(payload, filters)
        or base64.urlsafe_b64encode(raw).decode().rstrip("=") != token
    ):
        raise refused
    _, clock, created_at, task_id, total = _LAYOUT.unpack(payload)
    is_in_range = 0 <= clock < _LAST and 0 <= created_at < _LAST and total >= _NO_TOTAL
    if not is_in_range or has_clock != (clock > 0):
        raise refused
    return Cursor(
        clock=_EPOCH + clock * _MICROSECOND if clock else None,
        created_at=_EPOCH + created_at * _MICROSECOND,
        task_id=UUID(bytes=task_id),
        total=None if total == _NO_TOTAL else total,
    )


def _checksum(payload: bytes, filters: bytes) -> bytes:
    return hashlib.blake2b(payload + filters, digest_size=_CHECKSUM_BYTES).digest()
