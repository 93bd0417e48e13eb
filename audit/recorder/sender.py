"""The thread that sends what is in the spool, and goes on until the service has all of it."""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Final

from audit.client.wire import Retries
from audit.errors import Problem, TaskNotFound
from audit.history.parsing import change_of
from audit.recorder.errors import LeaseLost, SpoolError
from audit.recorder.process import Process
from audit.recorder.spool import LEASE_SECONDS, Holder, Record, Spool
from audit.recorder.transport import Transport

log = logging.getLogger("audit.recorder")

#: The interval at which the sender reads new records. The tasks of an interval share a request.
_LINGER_SECONDS: Final = 1.0
#: The lease does not end while a request is sent, which takes 30 seconds at most.
_REQUEST_LEASE_SECONDS: Final = 30.0 + LEASE_SECONDS
_BATCH_TASKS: Final = 1000
_BATCH_BYTES: Final = 1024 * 1024
_CHANGES: Final = 100
#: How often to look for tasks whose process is gone.
_ORPHANS_SECONDS: Final = 10.0
#: Celery reports that a process of its worker has died, up to 11 seconds later. Only one of its
#: report and ours can be recorded, and its report says more.
_GONE_SECONDS: Final = 20.0
#: How long to wait after a failure. The sender tries for ever.
_RETRIES: Final = Retries()
#: How long a change waits for its task, which another host may still have in its spool.
_UNKNOWN_TRIES: Final = 14
_LONGEST_UNKNOWN_SECONDS: Final = 600.0
#: A failure that goes on is reported again so often.
_REPORT_SECONDS: Final = 60.0
#: The content of a request is wrong. Any other refusal may end without a change of the content.
_GUILTY: Final = frozenset(
    {
        HTTPStatus.BAD_REQUEST,
        HTTPStatus.CONFLICT,
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        HTTPStatus.UNPROCESSABLE_ENTITY,
    }
)
_ORPHAN = "the process that ran it ended without a word"


class Sender:
    """Sends the records of a spool, if no other sender does. It has a thread of its own."""

    def __init__(
        self,
        spool: Spool,
        connect: Callable[[], Transport],
        report: Callable[[Exception], None],
        *,
        ends_orphans: bool = True,
    ) -> None:
        """Call `connect` in the thread, and `report` with what goes wrong."""
        self._spool = spool
        self._connect = connect
        self._report = report
        self._ends_orphans = ends_orphans
        self._holder = Holder(Process.current(), secrets.token_hex(8))
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._has_lease = False
        self._failures = 0
        self._reported_at = -_REPORT_SECONDS
        self._orphans_at = -_ORPHANS_SECONDS
        #: Changes whose task is unknown: when each is tried again.
        self._unknown: dict[int, float] = {}
        self._thread = threading.Thread(target=self._run, name="audit-recorder", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Send what there is without waiting for more."""
        self._wake.set()

    def stop(self, timeout: float) -> None:
        """End the thread after its current request, and let another sender go on."""
        self._stopping.set()
        self._wake.set()
        self._thread.join(timeout)

    def _run(self) -> None:
        transport: Transport | None = None
        wait = 0.0
        while not self._stopping.is_set():
            self._wake.wait(wait)
            self._wake.clear()
            try:
                if transport is None:
                    transport = self._connect()
                wait = self._send_all(transport)
            except LeaseLost:
                self._has_lease = False
                wait = _LINGER_SECONDS
            except SpoolError as error:
                self._fail(error)
                wait = _LINGER_SECONDS
            except Problem as problem:
                self._fail(problem)
                wait = _RETRIES.wait(self._failures, problem.retry_after_seconds)
            except Exception as error:  # the thread must outlive whatever happens
                log.exception("the recorder failed; it tries again")
                self._fail(error)
                wait = _RETRIES.longest_wait
        if transport is not None:
            transport.close()
        if self._has_lease:
            with contextlib.suppress(SpoolError):
                self._spool.release_lease(self._holder)

    def _send_all(self, transport: Transport) -> float:
        """Send until nothing is left, and return how long to wait for more."""
        if self._spool.is_idle():
            return _LINGER_SECONDS
        self._end_orphans()
        if self._spool.is_empty():
            return _LINGER_SECONDS
        self._has_lease = self._spool.take_lease(self._holder)
        if not self._has_lease:
            return _LINGER_SECONDS
        while not self._stopping.is_set():
            # While the service fails, only the oldest task is sent. Changes can still be merged
            # into the others.
            count = 1 if self._failures else _BATCH_TASKS
            new = self._spool.next_new(count, _BATCH_BYTES)
            if new:
                self._send_new(transport, new)
            changed = self._send_changes(transport)
            if not new and not changed:
                break
        return _LINGER_SECONDS

    def _send_new(self, transport: Transport, records: Sequence[Record]) -> None:
        """Record tasks by one request. If the service refuses some, halve until they are alone."""
        sent = self._spool.mark_sent(records, self._holder, _REQUEST_LEASE_SECONDS)
        if not sent:
            return
        try:
            transport.record([record.body for record in sent])
        except Problem as problem:
            if problem.status not in _GUILTY:
                raise
            self._succeeded()
            if len(sent) == 1:
                self._refuse(sent[0], problem)
                return
            middle = len(sent) // 2
            self._send_new(transport, sent[:middle])
            self._send_new(transport, sent[middle:])
        else:
            self._succeeded()
            self._spool.remove(sent, self._holder)

    def _send_changes(self, transport: Transport) -> int:
        """Send changes of tasks that the service has; return how many were settled."""
        settled = 0
        after = 0
        while records := self._spool.next_changes(_CHANGES, after):
            after = records[-1].id
            for record in records:
                if self._stopping.is_set():
                    return settled
                if self._unknown.get(record.id, 0.0) <= time.monotonic():
                    settled += self._send_change(transport, record)
        return settled

    def _send_change(self, transport: Transport, record: Record) -> bool:
        sent = self._spool.mark_sent([record], self._holder, _REQUEST_LEASE_SECONDS)
        if not sent:
            return False
        try:
            transport.change(record.task_id, sent[0].body)
        except TaskNotFound as problem:
            self._succeeded()
            return self._is_unknown(record, problem)
        except Problem as problem:
            if problem.status not in _GUILTY:
                raise
            self._succeeded()
            self._refuse(record, problem)
        else:
            self._succeeded()
            self._spool.remove([record], self._holder)
        self._unknown.pop(record.id, None)
        return True

    def _is_unknown(self, record: Record, problem: Problem) -> bool:
        """Let a change wait for its task; return whether it has waited for too long."""
        tries = self._spool.tries(record)
        if tries >= _UNKNOWN_TRIES:
            self._refuse(record, problem)
            self._unknown.pop(record.id, None)
            return True
        wait = min(_LONGEST_UNKNOWN_SECONDS, 2.0 ** (tries - 1))
        self._unknown[record.id] = time.monotonic() + wait
        return False

    def _refuse(self, record: Record, problem: Problem) -> None:
        self._spool.refuse(record, problem.document(), self._holder)
        log.error(
            "the service refuses task %s: %s; see `audit spool list`",
            record.task_id,
            problem.detail,
        )
        self._report(problem)

    def _end_orphans(self) -> None:
        now = time.monotonic()
        if not self._ends_orphans or now - self._orphans_at < _ORPHANS_SECONDS:
            return
        self._orphans_at = now
        ended = {
            "status": "failed",
            "completed_at": datetime.now(UTC),
            "error_message": _ORPHAN,
        }
        for task_id in self._spool.end_orphans(change_of(ended), _GONE_SECONDS):
            log.warning("task %s is recorded as failed: %s", task_id, _ORPHAN)

    def _succeeded(self) -> None:
        if self._failures:
            log.info("the service accepts records again")
        self._failures = 0
        self._reported_at = -_REPORT_SECONDS

    def _fail(self, error: Exception) -> None:
        """Report a failure that is new, or that goes on."""
        self._failures += 1
        now = time.monotonic()
        if now - self._reported_at >= _REPORT_SECONDS:
            self._reported_at = now
            log.error("records wait in %s: %s", self._spool.path, error)
            self._report(error)
