"""What waits in the spool: new tasks and changes, in the order in which they were made.

A record that is in the spool when a call returns is sent in the end, whatever ends the process.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from audit.recorder import statements
from audit.recorder.database import Database
from audit.recorder.errors import LeaseLost
from audit.recorder.process import Process

MAX_BYTES: Final = 1024**3
LEASE_SECONDS: Final = 10.0
#: A lease that ends later than this was taken before the host started again.
_LONGEST_LEASE_SECONDS: Final = 600.0
#: Two records that the service accepts may be too large as one.
_LARGEST_MERGED: Final = 512 * 1024
NEW: Final = "new"
CHANGE: Final = "change"


@dataclass(frozen=True, slots=True)
class Record:
    """A new task or a change to one, as JSON text."""

    id: int
    task_id: str
    body: str


@dataclass(frozen=True, slots=True)
class Refused:
    """A record that the service refused."""

    id: int
    task_id: str
    kind: str
    body: str
    made_at: float
    tried: int
    refused_at: float
    problem: str
    """The problem document as JSON, without `instance`."""


@dataclass(frozen=True, slots=True)
class Size:
    """What a spool holds."""

    waiting: int
    """The records that the service has not accepted yet."""
    oldest_seconds: float
    """The age of the oldest of them; 0 if there is none."""
    refused: int
    running: int
    """The tasks that are being executed."""


class Spool:
    """The records of a file. Any number of threads and processes may use the same file."""

    def __init__(self, path: str | os.PathLike[str], max_bytes: int = MAX_BYTES) -> None:
        self._database = Database(path, max_bytes)
        self.path = self._database.path

    def open(self) -> None:
        """Open the file, or make it.

        Raises:
            SpoolError: it cannot be opened or written.
        """
        with self._database.writing():
            pass

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    # What a recorder adds.

    def add(self, task_id: str, body: str, owner: Process | None = None) -> None:
        """Add a new task. If it has an `owner`, that process executes it from now on."""
        with self._database.writing() as connection:
            _add(connection, task_id, NEW, body)
            if owner is not None:
                connection.execute(statements.ADD_RUNNING, {"task_id": task_id, **asdict(owner)})

    def change(
        self, task_id: str, body: str, owner: Process | None = None, *, ends: bool = False
    ) -> None:
        """Add a change. It is merged into the new task if that was never sent."""
        with self._database.writing() as connection:
            _change(connection, task_id, body)
            if owner is not None:
                connection.execute(statements.ADD_RUNNING, {"task_id": task_id, **asdict(owner)})
            if ends:
                connection.execute(statements.REMOVE_RUNNING, {"task_id": task_id})

    def release(self, task_id: str) -> None:
        """Say that no process executes a task, although it goes on."""
        with self._database.writing() as connection:
            connection.execute(statements.REMOVE_RUNNING, {"task_id": task_id})

    def end_orphans(self, body: str, seconds: float) -> list[str]:
        """Add this change for each task whose process has been gone for some seconds.

        Return the ids of these tasks. The seconds begin when a sender first finds the process gone.
        They give the program that started the process time to report the end of the task itself.
        """
        with self._database.reading() as connection:
            running = connection.execute(statements.LIST_RUNNING).fetchall()
        owners = {Process(*row[2:]) for row in running}
        gone = {owner for owner in owners if owner.is_gone()}
        if not gone:
            return []
        ended = []
        now = _now()
        with self._database.writing() as connection:
            # Another process may have ended some of them since.
            for task_id, gone_at, *owner in connection.execute(statements.LIST_RUNNING).fetchall():
                if Process(*owner) not in gone:
                    continue
                if gone_at is None:
                    values = {"task_id": task_id, "gone_at": now}
                    connection.execute(statements.MARK_GONE, values)
                elif not 0 <= now - gone_at < seconds:  # below 0, the host has started again
                    _change(connection, task_id, body)
                    connection.execute(statements.REMOVE_RUNNING, {"task_id": task_id})
                    ended.append(str(task_id))
        return ended

    # What the sender does.

    def is_idle(self) -> bool:
        """Return whether there is nothing to send, and no task whose process may be gone."""
        oldest, _, task = self._has_records()
        return oldest is None and task is None

    def is_empty(self) -> bool:
        """Return whether there is nothing to send."""
        return self._has_records()[0] is None

    def newest(self) -> int:
        """Return the id of the record that was added last; 0 if there is none."""
        return self._has_records()[1] or 0

    def has_sent(self, newest: int) -> bool:
        """Return whether nothing is left of the records up to an id."""
        oldest = self._has_records()[0]
        return oldest is None or oldest > newest

    def _has_records(self) -> tuple[int | None, int | None, str | None]:
        with self._database.reading() as connection:
            oldest, newest, task = connection.execute(statements.HAS_RECORDS).fetchone()
        return oldest, newest, task

    def take_lease(self, holder: Holder, seconds: float = LEASE_SECONDS) -> bool:
        """Let `holder` send from now on, unless another sender has the lease."""
        with self._database.reading() as connection:
            row = connection.execute(statements.READ_LEASE).fetchone()
        if _is_of_another(row, holder):
            return False
        with self._database.writing() as connection:
            if _is_of_another(connection.execute(statements.READ_LEASE).fetchone(), holder):
                return False
            _extend(connection, holder, seconds)
        return True

    def release_lease(self, holder: Holder) -> None:
        """Let another sender send at once."""
        with self._database.writing() as connection:
            connection.execute(statements.RELEASE_LEASE, {"holder": holder.text})

    def next_new(self, count: int, max_bytes: int) -> list[Record]:
        """Return the oldest new tasks, up to `max_bytes` unless a single one is larger."""
        records: list[Record] = []
        size = 0
        with self._database.reading() as connection:
            for row in connection.execute(statements.NEXT_NEW, {"count": count}):
                size += len(row["body"].encode()) + 1
                if records and size > max_bytes:
                    break
                records.append(Record(*row))
        return records

    def next_changes(self, count: int, after: int = 0) -> list[Record]:
        """Return the oldest changes after a record, of tasks that wait for nothing else."""
        with self._database.reading() as connection:
            rows = connection.execute(statements.NEXT_CHANGES, {"after": after, "count": count})
            return [Record(*row) for row in rows]

    def mark_sent(self, records: Sequence[Record], holder: Holder, seconds: float) -> list[Record]:
        """Say that records are about to be sent, and return them as they are now.

        A change may have been merged into one of them since it was read. From now on their bodies
        stay the same, so that to send them again is a duplicate at worst.

        Raises:
            LeaseLost: another sender has the lease.
        """
        ids = _ids(records)
        with self._database.writing() as connection:
            _require(connection, holder)
            _extend(connection, holder, seconds)
            connection.execute(statements.MARK_SENT, {"ids": ids})
            return [
                Record(*row) for row in connection.execute(statements.READ_RECORDS, {"ids": ids})
            ]

    def remove(self, records: Sequence[Record], holder: Holder) -> None:
        """Remove records that the service has accepted.

        Raises:
            LeaseLost: another sender has the lease.
        """
        with self._database.writing() as connection:
            _require(connection, holder)
            _extend(connection, holder, LEASE_SECONDS)
            connection.execute(statements.REMOVE_RECORDS, {"ids": _ids(records)})

    def refuse(self, record: Record, problem: dict[str, Any], holder: Holder) -> None:
        """Move a record to those that the service refused.

        Raises:
            LeaseLost: another sender has the lease.
        """
        values = {
            "id": record.id,
            "refused_at": time.time(),
            "problem": json.dumps(problem, ensure_ascii=False),
        }
        with self._database.writing() as connection:
            _require(connection, holder)
            connection.execute(statements.REFUSE_RECORD, values)
            connection.execute(statements.REMOVE_RECORDS, {"ids": _ids([record])})

    def tries(self, record: Record) -> int:
        """Return how often a record was sent."""
        with self._database.reading() as connection:
            row = connection.execute(statements.COUNT_TRIES, {"id": record.id}).fetchone()
        return int(row[0]) if row else 0

    # What people do.

    def size(self) -> Size:
        """Return what the spool holds."""
        with self._database.reading() as connection:
            waiting, oldest, refused, running = connection.execute(statements.MEASURE).fetchone()
        return Size(waiting, max(0.0, time.time() - oldest) if waiting else 0.0, refused, running)

    def refused(self) -> list[Refused]:
        """Return what the service refused, oldest first."""
        with self._database.reading() as connection:
            return [Refused(*row) for row in connection.execute(statements.LIST_REFUSED)]

    def retry(self, task_ids: Iterable[str]) -> int:
        """Put what was refused of these tasks back to its place; return the number of records."""
        values = {"task_ids": json.dumps(list(task_ids))}
        with self._database.writing() as connection:
            connection.execute(statements.RETRY_REFUSED, values)
            return connection.execute(statements.DROP_REFUSED, values).rowcount

    def drop(self, task_ids: Iterable[str]) -> int:
        """Remove what was refused of these tasks; return the number of records."""
        values = {"task_ids": json.dumps(list(task_ids))}
        with self._database.writing() as connection:
            return connection.execute(statements.DROP_REFUSED, values).rowcount


@dataclass(frozen=True, slots=True)
class Holder:
    """A sender: a process, and one of its recorders."""

    process: Process
    token: str

    @property
    def text(self) -> str:
        """The holder as the spool stores it."""
        return json.dumps([*asdict(self.process).values(), self.token])


def _add(connection: sqlite3.Connection, task_id: str, kind: str, body: str) -> None:
    values = {"task_id": task_id, "kind": kind, "body": body, "made_at": time.time()}
    connection.execute(statements.ADD_RECORD, values)


def _change(connection: sqlite3.Connection, task_id: str, body: str) -> None:
    row = connection.execute(statements.FIND_UNTRIED_NEW, {"task_id": task_id}).fetchone()
    if row is None:
        _add(connection, task_id, CHANGE, body)
        return
    merged = json.dumps(json.loads(row["body"]) | json.loads(body), ensure_ascii=False)
    if len(merged.encode()) > _LARGEST_MERGED:
        _add(connection, task_id, CHANGE, body)
    else:
        connection.execute(statements.REPLACE_BODY, {"id": row["id"], "body": merged})


def _ids(records: Sequence[Record]) -> str:
    return json.dumps([record.id for record in records])


def _now() -> float:
    """Return the monotonic clock of the host, which all processes share. No one can change it."""
    return time.monotonic()


def _is_of_another(row: sqlite3.Row | None, holder: Holder) -> bool:
    """Return whether the lease belongs to another sender that may still be at work."""
    if row is None or row["holder"] == holder.text:
        return False
    if not 0 < row["until"] - _now() < _LONGEST_LEASE_SECONDS:
        return False
    *process, _ = json.loads(row["holder"])
    return not Process(*process).is_gone()


def _require(connection: sqlite3.Connection, holder: Holder) -> None:
    row = connection.execute(statements.READ_LEASE).fetchone()
    if row is None or row["holder"] != holder.text:
        raise LeaseLost


def _extend(connection: sqlite3.Connection, holder: Holder, seconds: float) -> None:
    values = {"holder": holder.text, "until": _now() + seconds}
    connection.execute(statements.TAKE_LEASE, values)
