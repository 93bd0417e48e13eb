"""A SQLite file that several threads and processes write, and that a fork cannot corrupt."""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from audit.recorder import statements
from audit.recorder.errors import SpoolError, SpoolFull

#: How long a writer waits for the writers of other processes.
_BUSY_SECONDS: Final = 5.0
#: SQLite itself would sleep for up to 100 ms before it looks again.
_LONGEST_SLEEP_SECONDS: Final = 0.002
#: A checkpoint, which copies the log of SQLite to its file, takes as long as ten commits or more.
#: It is made for every 4,000 pages, so it delays one record of several hundred.
_CHECKPOINT_PAGES: Final = 4000
_PAGE_BYTES: Final = 4096
_FEWEST_PAGES: Final = 32

_databases: weakref.WeakSet[Database] = weakref.WeakSet()


class Database:
    """One connection, which its threads share.

    A child process must not use a connection of its parent, and SQLite's locks do not survive a
    second connection of the child beside it. So the connection is closed before a fork. The parent
    and the child each open a new one when they next use the file.
    """

    def __init__(self, path: str | os.PathLike[str], max_bytes: int) -> None:
        self._connection: sqlite3.Connection | None = None
        self.path = Path(path).absolute()
        self._max_pages = max(max_bytes // _PAGE_BYTES, _FEWEST_PAGES)
        self._lock = threading.Lock()
        _databases.add(self)

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Yield the connection to read with, without a transaction.

        Raises:
            SpoolError: the file cannot be read.
        """
        with self._lock, self._naming_failures():
            yield self._open()

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Yield the connection in a transaction, which is on the disk when the block has ended.

        Raises:
            SpoolError: the file cannot be written. Nothing of the transaction is stored.
        """
        with self._lock, self._naming_failures():
            connection = self._open()
            try:
                _begin(connection)
                yield connection
                connection.execute("COMMIT")
            finally:
                if connection.in_transaction:
                    connection.rollback()

    def close(self) -> None:
        """Close the connection. The next use opens another one."""
        with self._lock:
            self.close_before_fork()

    def close_before_fork(self) -> None:
        """Close the connection, while the lock is held."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __del__(self) -> None:
        """Close the connection. Python 3.13 warns if a connection is deleted while it is open."""
        self.close_before_fork()

    def lock_before_fork(self) -> None:
        """Wait until no thread uses the connection, and close it."""
        self._lock.acquire()
        self.close_before_fork()

    def unlock_after_fork(self) -> None:
        """Let threads use the file again, in the parent or in the child."""
        self._lock.release()

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            connection = sqlite3.connect(
                self.path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            try:
                connection.row_factory = sqlite3.Row
                _retry_while_busy(lambda: connection.execute("PRAGMA journal_mode = WAL"))
                connection.execute("PRAGMA synchronous = FULL")
                connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
                connection.execute(f"PRAGMA max_page_count = {self._max_pages}")
                connection.executescript(statements.CREATE_TABLES)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    @contextlib.contextmanager
    def _naming_failures(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            is_full = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
            kind = SpoolFull if is_full else SpoolError
            raise kind(f"{self.path}: {error}") from error


def _begin(connection: sqlite3.Connection) -> None:
    """Begin a transaction that may write, when no other process writes."""
    connection.execute("PRAGMA busy_timeout = 0")
    try:
        _retry_while_busy(lambda: connection.execute("BEGIN IMMEDIATE"))
    finally:
        connection.execute(f"PRAGMA busy_timeout = {_BUSY_SECONDS * 1000:.0f}")


def _retry_while_busy(run: Callable[[], object]) -> None:
    until = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            run()
        except sqlite3.OperationalError as error:
            # The lower byte is the kind of the error, and the others say more about it.
            is_busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
            if not is_busy or time.monotonic() > until:
                raise
        else:
            return
        time.sleep(random.uniform(0, _LONGEST_SLEEP_SECONDS))  # noqa: S311 - no secret


_before_fork: list[Database] = []


def _lock_all() -> None:
    _before_fork[:] = list(_databases)
    for database in _before_fork:
        database.lock_before_fork()


def _unlock_all() -> None:
    for database in _before_fork:
        database.unlock_after_fork()
    _before_fork.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_lock_all, after_in_parent=_unlock_all, after_in_child=_unlock_all)
