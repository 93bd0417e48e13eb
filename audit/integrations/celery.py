"""Records the tasks of a Celery application: `connect(app, recorder)`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final
from uuid import NAMESPACE_URL, UUID, uuid5

from celery import Celery, signals

from audit.recorder import RecordedTask, Recorder

#: The header of a message whose task the publisher has recorded.
_HEADER: Final = "task_audit"
_ENDED_TASKS: Final = 1000

#: Returns the names of the services that a call touches: of a task's name, args and kwargs.
Services = Callable[[str, Sequence[Any], Mapping[str, Any]], Iterable[str]]


def connect(
    app: Celery,
    recorder: Recorder,
    *,
    services: Services | None = None,
    only: Callable[[str], bool] | None = None,
) -> None:
    """Record each task of `app`, in the programs that publish it and in the workers.

    A task is `pending` when it is published, `executing` in a worker, and then `completed`,
    `failed`, or `rejected` if it was revoked before it began. Retries stay `executing`. Arguments
    and results are not recorded. `only` takes the name of a task and returns whether to record it.

    Call it in the module of the app, so that all of these programs do.
    """
    _Handlers(app, recorder, services or (lambda *_: ()), only or (lambda _: True)).connect()


def task_id_of(celery_id: str) -> str:
    """Return the id of the recorded task: that of Celery if it is a UUID, else one made from it."""
    try:
        return str(UUID(celery_id))
    except ValueError:
        return str(uuid5(NAMESPACE_URL, f"celery:{celery_id}"))


class _Handlers:
    """The receivers of Celery's signals. Celery logs what they raise, and goes on."""

    def __init__(
        self, app: Celery, recorder: Recorder, services: Services, only: Callable[[str], bool]
    ) -> None:
        self._app = app
        self._recorder = recorder
        self._services = services
        self._only = only
        #: The tasks that this process executes.
        self._executing: dict[str, RecordedTask] = {}
        #: The tasks that this process ended last. Celery may report the end of a terminated task
        #: twice: that it is revoked, and that its process has died.
        self._ended: deque[str] = deque(maxlen=_ENDED_TASKS)

    def connect(self) -> None:
        """Receive the signals as long as the process runs."""
        for signal, receiver in (
            (signals.before_task_publish, self._publish),
            (signals.task_prerun, self._begin),
            (signals.task_success, self._succeed),
            (signals.task_retry, self._retry),
            (signals.task_failure, self._fail),
            (signals.task_revoked, self._revoke),
        ):
            signal.connect(receiver, weak=False)

    def _publish(self, sender: str, headers: dict[str, Any], body: Any, **_: Any) -> None:
        if not self._records(sender) or _HEADER in headers or headers.get("retries"):
            return
        args, kwargs = body[:2] if isinstance(body, tuple) else (body["args"], body["kwargs"])
        self._start(headers["id"], sender, args, kwargs, "pending")
        headers[_HEADER] = True

    def _begin(self, sender: Any, task_id: str, args: Any, kwargs: Any, **_: Any) -> None:
        if not self._is_ours(sender):
            return
        request = sender.request
        if getattr(request, _HEADER, None) or request.retries:
            task = self._resume(task_id, sender.name, args, kwargs)
            task.execute()
        else:
            task = self._start(task_id, sender.name, args, kwargs, "executing")
        self._executing[task_id] = task

    def _succeed(self, sender: Any, **_: Any) -> None:
        if self._is_ours(sender) and (task := self._end(sender, sender.request.id)):
            task.complete()

    def _retry(self, sender: Any, request: Any, **_: Any) -> None:
        """Let the task wait for the next attempt, which another process may make."""
        if self._is_ours(sender) and request.id in self._executing:
            del self._executing[request.id]
            self._recorder.release(task_id_of(request.id))

    def _fail(self, sender: Any, task_id: str, exception: BaseException, **_: Any) -> None:
        """Record a failure: in the process that executed the task, or in its parent if it died."""
        if self._is_ours(sender) and (task := self._end(sender, task_id)):
            task.fail(exception)

    def _revoke(self, sender: Any, request: Any, terminated: bool, expired: bool, **_: Any) -> None:
        task = self._end(sender, request.id) if self._is_ours(sender) else None
        if task is None:
            return
        if terminated:
            task.fail("revoked while it was executed")
        else:
            task.reject("expired" if expired else "revoked")

    def _records(self, name: str) -> bool:
        return not name.startswith("celery.") and self._only(name)

    def _is_ours(self, task: Any) -> bool:
        return task.app.main == self._app.main and self._records(task.name)

    def _start(
        self, celery_id: str, name: str, args: Any, kwargs: Any, status: str
    ) -> RecordedTask:
        return self._recorder.start(
            name,
            services=self._services(name, args, kwargs),
            intent=name,
            status=status,
            task_id=task_id_of(celery_id),
        )

    def _resume(self, celery_id: str, name: str, args: Any, kwargs: Any) -> RecordedTask:
        services = self._services(name, args, kwargs)
        return self._recorder.resume(
            task_id_of(celery_id), outcome={"action_type": name}, services=services
        )

    def _end(self, task: Any, celery_id: str) -> RecordedTask | None:
        """Return the recorded task that ends now, or None if its end was reported already."""
        if celery_id in self._ended:
            return None
        self._ended.append(celery_id)
        found = self._executing.pop(celery_id, None)
        return found or self._recorder.resume(
            task_id_of(celery_id), outcome={"action_type": task.name}
        )
