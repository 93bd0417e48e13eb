"""Sends each record when it is made, for scripts that have no spool."""

from __future__ import annotations

import threading
from collections.abc import Callable

from audit.recorder.process import Process
from audit.recorder.spool import Size
from audit.recorder.transport import Transport


class Direct:
    """Takes the place of a spool. A record that cannot be sent raises its `Problem`."""

    def __init__(self, connect: Callable[[], Transport]) -> None:
        self._connect = connect
        self._lock = threading.Lock()
        self._transport: Transport | None = None

    def add(
        self,
        task_id: str,  # noqa: ARG002 - the signature is that of a spool
        body: str,
        owner: Process | None = None,  # noqa: ARG002
    ) -> None:
        """Record a new task."""
        self._connected().record([body])

    def change(
        self,
        task_id: str,
        body: str,
        owner: Process | None = None,  # noqa: ARG002
        *,
        ends: bool = False,  # noqa: ARG002
    ) -> None:
        """Change a task."""
        self._connected().change(task_id, body)

    def release(self, task_id: str) -> None:
        """Do nothing. Only a spool stores which process executes a task."""

    def size(self) -> Size:
        """Return that nothing waits."""
        return Size(0, 0.0, 0, 0)

    def newest(self) -> int:
        """Return that nothing waits."""
        return 0

    def has_sent(self, newest: int) -> bool:  # noqa: ARG002
        """Return that nothing waits."""
        return True

    def close(self) -> None:
        """Close the connections."""
        with self._lock:
            if self._transport is not None:
                self._transport.close()
                self._transport = None

    def _connected(self) -> Transport:
        with self._lock:
            if self._transport is None:
                self._transport = self._connect()
            return self._transport
