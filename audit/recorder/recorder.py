"""`Recorder`: records what an orchestrator does, without making it wait for the network."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Final, Literal, Self, get_args
from uuid import UUID

from audit.client import calls
from audit.errors import Problem
from audit.history.parsing import change_of, text_of
from audit.history.states import MUST_BE_STATE, State
from audit.history.validation import invalid
from audit.recorder import texts
from audit.recorder.direct import Direct
from audit.recorder.errors import SpoolError
from audit.recorder.process import Process
from audit.recorder.scope import TaskScope
from audit.recorder.sender import Sender
from audit.recorder.spool import MAX_BYTES, Spool
from audit.recorder.task import RecordedTask
from audit.recorder.transport import connect

log = logging.getLogger("audit.recorder")

_MAX_TEXT: Final = 8192
_EXIT_SECONDS: Final = 2.0
_LEAST_SECONDS: Final = 0.1
#: After this number of records, the recorder wakes the sender instead of letting it sleep on.
_WAKE_RECORDS: Final = 1000
_POLL_SECONDS: Final = 0.02

Members = dict[str, Any]
OnFull = Literal["raise", "drop-and-count"]
Orphans = Literal["fail", "leave"]


@dataclass(frozen=True, slots=True)
class RecorderStats:
    """What a recorder has to do, and what it could not do."""

    waiting: int
    """The records in the spool that the service has not accepted yet, of all processes."""
    oldest_seconds: float
    """The age of the oldest of them."""
    refused: int
    """The records in the spool that the service refused; see `audit spool list`."""
    running: int
    """The tasks in the spool that are being executed."""
    dropped: int
    """The records of this process that could be neither stored nor sent."""


class Recorder:
    """Records tasks. All threads of a process may share one, and it may be used after a fork."""

    def __init__(
        self,
        url: str | None = None,
        *,
        key: str | None = None,
        profile: str | None = None,
        insecure: bool = False,
        spool: str | os.PathLike[str] | None = None,
        created_by: str | None = None,
        project_id: UUID | str | None = None,
        redact: Callable[[Members], Members] | None = None,
        max_text: int = _MAX_TEXT,
        traceback: bool = False,
        on_error: Callable[[Exception], None] | None = None,
        on_full: OnFull = "raise",
        max_bytes: int = MAX_BYTES,
        orphans: Orphans = "fail",
    ) -> None:
        """Record through the service at a URL.

        Args:
            url: the address of the service. What is not given of `url`, `key` and `profile` comes
                from AUDIT_URL, AUDIT_KEY and AUDIT_PROFILE, then from the default profile.
            key: an API key of scope `record`.
            profile: the name of a profile, see `audit profiles`.
            insecure: whether the key may be sent over a network without TLS.
            spool: a file on a local disk, for all processes of this host. Without it, records are
                sent at once and lost if the service does not answer.
            created_by: who starts the tasks, unless a task says it.
            project_id: the project of the tasks, unless a task says it.
            redact: gets the members that are about to be stored or sent, and returns them without
                what must not leave this process.
            max_text: how many characters of an error are recorded.
            traceback: whether the traceback of an exception is recorded too.
            on_error: is called with what cannot be raised: the service refuses a record or cannot
                be reached, or the spool cannot be written when a task ends.
            on_full: `raise` does not let work begin that the spool cannot store. With
                `drop-and-count`, work begins, and `stats().dropped` counts.
            max_bytes: the limit of the spool.
            orphans: `fail` ends the tasks whose process is gone as failed. `leave` leaves them.

        Raises:
            SpoolError: the spool cannot be opened, and `on_full` is `raise`.
            BadConfiguration: the address or the key is not valid.
            ValueError: `on_full` or `orphans` is none of its values.
        """
        _require_one_of("on_full", on_full, get_args(OnFull))
        _require_one_of("orphans", orphans, get_args(Orphans))
        self._members = {"created_by": created_by, "project_id": project_id}
        self._redact = redact
        self._max_text = max_text
        self._traceback = traceback
        self._on_error = on_error
        self._on_full = on_full
        self._ends_orphans = orphans == "fail"
        self._connect = partial(connect, url, key, profile, insecure=insecure)
        self._connect().close()  # fails now if the address is not valid
        self._is_closed = False
        self._reset()
        if spool is None:
            self._store: Spool | Direct = Direct(self._connect)
        else:
            self._store = Spool(spool, max_bytes)
            try:
                self._store.open()
            except SpoolError as error:
                self._lose(error, may_raise=True)
            self._sending()
        _recorders.add(self)

    def _reset(self) -> None:
        """Forget the threads of the parent process after a fork."""
        self._lock = threading.Lock()
        self._owner = Process.current()
        self._sender: Sender | None = None
        self._executor: ThreadPoolExecutor | None = None
        self._dropped = 0
        self._kept = 0

    def after_fork(self) -> None:
        """Go on in a child process."""
        self._reset()
        if isinstance(self._store, Direct):
            self._store = Direct(self._connect)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # Tasks.

    def task(
        self,
        request_text: str | None = None,
        *,
        services: Iterable[str] = (),
        intent: str | None = None,
        outcome: Mapping[str, Any] | None = None,
        task_id: UUID | str | None = None,
        **members: Any,
    ) -> TaskScope:
        """Record a block of code, or each call of a function, as a task.

        The task is `executing` when the block begins, and `completed` when it ends. If it raises,
        the task is `failed`, and the exception goes on.

            with recorder.task("Deploy payments 4.2", services=["payments"]) as task: ...

            @recorder.task(services=["payments"], intent="rotate_secret")
            async def rotate(): ...

        The text of a function's task is its docstring, or its name. `members` are further members
        of the task, such as `created_by` and `estimated_resources`.
        """
        if callable(request_text):
            raise TypeError("write @recorder.task() with parentheses")
        services = _names(services)

        def begin(text: str) -> RecordedTask:
            return self.start(
                text,
                services=services,
                intent=intent,
                outcome=outcome,
                status=State.EXECUTING,
                task_id=task_id,
                **members,
            )

        return TaskScope(begin, request_text, self._threads)

    def start(
        self,
        request_text: str,
        *,
        services: Iterable[str] = (),
        intent: str | None = None,
        outcome: Mapping[str, Any] | None = None,
        status: State | str = State.PENDING,
        task_id: UUID | str | None = None,
        **members: Any,
    ) -> RecordedTask:
        """Record a task whose states the caller reports.

        Raises:
            Invalid: a member is not valid.
            SpoolError: the spool cannot store it, and `on_full` is `raise`.
        """
        named = {"action_type": intent} if intent else {}
        outcome = {**_members(outcome), **named, **_trace()}
        given = {**self._members, **members}
        new = {
            "task_id": str(task_id or calls.new_task_id()),
            "request_text": request_text,
            "status": _state(status).value,
            "services_touched": _names(services),
            "outcome": outcome or None,
            **{name: value for name, value in given.items() if value is not None},
        }
        return RecordedTask.begin(self, new)

    def resume(
        self,
        task_id: UUID | str,
        *,
        outcome: Mapping[str, Any] | None = None,
        services: Iterable[str] = (),
    ) -> RecordedTask:
        """Return a task that was started elsewhere, to report its further states here.

        What `outcome` and `services` say replaces what was recorded.
        """
        return RecordedTask(self, str(task_id), _members(outcome), _names(services))

    def release(self, task_id: UUID | str) -> None:
        """Say that an executing task waits, so that it is not ended if this process ends.

        `resume(task_id).execute()` goes on with it, in this process or in another one.

        Raises:
            SpoolError: the spool cannot be written.
        """
        self._store.release(str(task_id))

    # State.

    def stats(self) -> RecorderStats:
        """Return what waits, what was refused and what was lost.

        Raises:
            SpoolError: the spool cannot be read.
        """
        size = self._store.size()
        return RecorderStats(
            size.waiting, size.oldest_seconds, size.refused, size.running, self._dropped
        )

    def flush(self, timeout: float = 30.0) -> bool:
        """Wait until the service has accepted or refused all records that the spool has now.

        Return False if the time is over before. The records stay in the spool.
        """
        end = time.monotonic() + timeout
        sender = self._sending()
        if sender is not None:
            sender.wake()
        newest = self._store.newest()
        while not self._store.has_sent(newest):
            if time.monotonic() > end:
                return False
            time.sleep(_POLL_SECONDS)
        return True

    def close(self, timeout: float = _EXIT_SECONDS) -> None:
        """Flush, and stop sending. What is left stays in the spool for the next recorder.

        A task that ends later is still stored.
        """
        if self._is_closed:
            return
        end = time.monotonic() + timeout
        if self._executor is not None:
            self._executor.shutdown()
        with contextlib.suppress(SpoolError):
            self.flush(timeout)
        self._is_closed = True
        if self._sender is not None:
            self._sender.stop(max(_LEAST_SECONDS, end - time.monotonic()))
        self._store.close()

    # What the tasks call.

    def begin(self, members: Members, *, implicit: bool) -> bool:
        """Store or send a new task; return whether that was possible."""
        try:
            body = text_of(self._redacted(members))
        except Exception as error:
            if not implicit:
                raise
            self._lose(error)
            return False
        owner = self._owner if members["status"] == State.EXECUTING else None
        return self._keep(
            partial(self._store.add, members["task_id"], body, owner), may_raise=not implicit
        )

    def change(self, task_id: str, members: Members, *, implicit: bool) -> None:
        """Store or send a change of a task."""
        try:
            body = change_of(self._redacted(members))
        except Exception as error:
            if not implicit:
                raise
            log.exception("the end of task %s is recorded without its details", task_id)
            self._report(error)
            body = change_of({name: members[name] for name in ("status", "completed_at")})
        status = State(members["status"])
        owner = self._owner if status == State.EXECUTING else None
        self._keep(
            partial(self._store.change, task_id, body, owner, ends=status.is_terminal),
            may_raise=not implicit,
        )

    def text(self, error: BaseException | str) -> str:
        """Return the text of an error as it is recorded."""
        if isinstance(error, str):
            return texts.clean(error, self._max_text)
        return texts.error_text(error, self._max_text, with_traceback=self._traceback)

    def _redacted(self, members: Members) -> Members:
        return members if self._redact is None else self._redact(dict(members))

    def _keep(self, store: Callable[[], None], *, may_raise: bool) -> bool:
        """Store or send a record; return whether that was possible."""
        try:
            store()
        except (SpoolError, Problem) as error:
            self._lose(error, may_raise=may_raise)
            return False
        self._kept += 1
        sender = self._sending()
        if sender is not None and self._kept % _WAKE_RECORDS == 0:
            sender.wake()
        return True

    def _lose(self, error: Exception, *, may_raise: bool = False) -> None:
        """Count a record that cannot be kept, or raise the error if the caller wants to know."""
        if may_raise and self._on_full == "raise" and isinstance(error, SpoolError):
            raise error
        with self._lock:
            self._dropped += 1
        log.error("a record is lost: %s", error)
        self._report(error)

    def _report(self, error: Exception) -> None:
        if self._on_error is None:
            return
        try:
            self._on_error(error)
        except Exception:
            log.exception("on_error failed")

    def _sending(self) -> Sender | None:
        """Return the sender of this process; start it if there is none."""
        if isinstance(self._store, Direct):
            return None
        with self._lock:
            if self._sender is None and not self._is_closed:
                self._sender = Sender(
                    self._store,
                    partial(self._connect, tries=1),
                    self._report,
                    ends_orphans=self._ends_orphans,
                )
            return self._sender

    def _threads(self) -> Executor:
        """Return the thread that writes to the disk for coroutines."""
        with self._lock:
            if self._executor is None:
                self._executor = ThreadPoolExecutor(1, thread_name_prefix="audit-recorder")
            return self._executor


def _names(services: Iterable[str]) -> list[str]:
    """Return the names of services, each once. A text would be one service per letter."""
    if isinstance(services, str):
        raise invalid("", "must be a list of names, not one text", "services_touched")
    return list(dict.fromkeys(services))


def _members(outcome: Mapping[str, Any] | None) -> Members:
    if not isinstance(outcome, Mapping | None):
        raise invalid("", "must be a mapping", "outcome")
    return dict(outcome or {})


def _state(status: State | str) -> State:
    try:
        return State(status)
    except ValueError:
        raise invalid("", MUST_BE_STATE, "status") from None


def _require_one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be {' or '.join(allowed)}, not {value!r}")


def _trace() -> Members:
    """Return the ids of the current span, if the program has imported OpenTelemetry."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return {}
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return {}
    return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}


_recorders: weakref.WeakSet[Recorder] = weakref.WeakSet()


def _after_fork() -> None:
    for recorder in list(_recorders):
        recorder.after_fork()


def _close_all() -> None:
    for recorder in list(_recorders):
        recorder.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
atexit.register(_close_all)
