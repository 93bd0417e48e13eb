"""Cursors: the position of a client in a list or a history, as an opaque token.

A token is URL-safe base64 of some bytes and a checksum. The checksum covers the bytes and what they
are bound to, such as the filters of a list. So a token that this service did not make, or made for
other filters, is refused. The checksum needs no secret, because a token gives access to nothing.

The bytes of a list are: version, microseconds of the window's clock (0: none), microseconds of the
last task's `created_at`, its id, and the total of the first page (-1: none). The bytes of a task's
history are: version, and the `event_id` of the last event. Those of the list of exports are:
version, microseconds of the last export's end, and its id.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import struct
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from audit.errors import Invalid

_VERSION = 1
_LAYOUT = struct.Struct(">Bqq16sq")
_EVENT_LAYOUT = struct.Struct(">Bq")
_EXPORT_LAYOUT = struct.Struct(">Bq16s")
_CHECKSUM_BYTES = 8
_NO_TOTAL = -1
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
#: No task has a later time, but a forged token could.
_LAST = (datetime(3000, 1, 1, tzinfo=UTC) - _EPOCH) // _MICROSECOND


@dataclass(frozen=True, slots=True)
class Cursor:
    """The position after a task of a list."""

    clock: datetime | None
    """The time that `days` or `last` counts back from; None without them."""
    created_at: datetime
    task_id: UUID
    total: int | None
    """The total of the first page; None if that page has no total."""

    def encode(self, filters: bytes) -> str:
        """Return the token, bound to the digest of the filters."""
        payload = _LAYOUT.pack(
            _VERSION,
            (self.clock - _EPOCH) // _MICROSECOND if self.clock else 0,
            (self.created_at - _EPOCH) // _MICROSECOND,
            self.task_id.bytes,
            _NO_TOTAL if self.total is None else self.total,
        )
        return _seal(payload, filters)


def decode(token: str, filters: bytes, *, has_clock: bool) -> Cursor:
    """Return the cursor of a token that `encode` made with the same filters.

    `has_clock` says whether the filters have `days` or `last`. If so, the token must contain a
    clock, or else its pages would have different windows. If not, it must not contain one.

    Raises:
        Invalid: this service did not make the token, or made it for other filters.
    """
    _, clock, created_at, task_id, total = _unseal(token, _LAYOUT, filters, "filters")
    is_in_range = 0 <= clock < _LAST and 0 <= created_at < _LAST and total >= _NO_TOTAL
    if not is_in_range or has_clock != (clock > 0):
        raise _refused("filters")
    return Cursor(
        clock=_EPOCH + clock * _MICROSECOND if clock else None,
        created_at=_EPOCH + created_at * _MICROSECOND,
        task_id=UUID(bytes=task_id),
        total=None if total == _NO_TOTAL else total,
    )


def encode_event(event_id: int, task_id: UUID) -> str:
    """Return the token for the position after an event of a task."""
    return _seal(_EVENT_LAYOUT.pack(_VERSION, event_id), task_id.bytes)


def decode_event(token: str, task_id: UUID) -> int:
    """Return the id of the event in a token that `encode_event` made for the same task.

    Raises:
        Invalid: this service did not make the token, or made it for another task.
    """
    _, event_id = _unseal(token, _EVENT_LAYOUT, task_id.bytes, "task")
    return int(event_id)


def encode_export(ended_at: datetime, export_id: UUID, project_id: UUID | None) -> str:
    """Return the token for the position after an export in the list of those of a project."""
    microseconds = (ended_at - _EPOCH) // _MICROSECOND
    payload = _EXPORT_LAYOUT.pack(_VERSION, microseconds, export_id.bytes)
    return _seal(payload, _exports_of(project_id))


def decode_export(token: str, project_id: UUID | None) -> tuple[datetime, UUID]:
    """Return what is in a token that `encode_export` made for the same project.

    Raises:
        Invalid: this service did not make the token, or made it for another project.
    """
    _, microseconds, export_id = _unseal(token, _EXPORT_LAYOUT, _exports_of(project_id), "list")
    if not 0 <= microseconds < _LAST:
        raise _refused("list")
    return _EPOCH + microseconds * _MICROSECOND, UUID(bytes=export_id)


def _exports_of(project_id: UUID | None) -> bytes:
    return b"exports" + (project_id.bytes if project_id else b"")


def _seal(payload: bytes, bound_to: bytes) -> str:
    sealed = payload + _checksum(payload, bound_to)
    return base64.urlsafe_b64encode(sealed).decode().rstrip("=")


def _unseal(token: str, layout: struct.Struct, bound_to: bytes, what: str) -> tuple[Any, ...]:
    try:
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise _refused(what) from None
    payload = raw[:-_CHECKSUM_BYTES]
    if len(payload) != layout.size or payload[0] != _VERSION or token != _seal(payload, bound_to):
        raise _refused(what)
    return layout.unpack(payload)


def _refused(what: str) -> Invalid:
    return Invalid(
        f"the cursor is not one of this service, or belongs to other {what}",
        errors=[
            {"field": "cursor", "detail": f"must be the next_cursor of a page of the same {what}"}
        ],
    )


def _checksum(payload: bytes, bound_to: bytes) -> bytes:
    return hashlib.blake2b(payload + bound_to, digest_size=_CHECKSUM_BYTES).digest()
