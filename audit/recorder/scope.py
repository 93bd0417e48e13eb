"""`recorder.task(…)`: a task that is a block of code, or each call of a function."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable
from concurrent.futures import Executor, Future
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from audit.recorder.task import RecordedTask

Arguments = ParamSpec("Arguments")
Returned = TypeVar("Returned")

#: Begins a task with this request text.
Begin = Callable[[str], RecordedTask]


class TaskScope:
    """A context manager, also for `async with`, and a decorator of functions and coroutines."""

    def __init__(
        self, begin: Begin, request_text: str | None, executor: Callable[[], Executor]
    ) -> None:
        self._begin = begin
        self._request_text = request_text
        self._executor = executor
        self._task: RecordedTask | None = None

    def __enter__(self) -> RecordedTask:
        if self._task is not None:
            raise RuntimeError("a task is recorded once: call recorder.task() for each block")
        if self._request_text is None:
            raise TypeError("recorder.task() needs the text of the request as its first argument")
        self._task = self._begin(self._request_text)
        return self._task

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._task is not None:
            self._task.leave(error)

    async def __aenter__(self) -> RecordedTask:
        """Record the task in a thread, so that other coroutines run while the disk is busy."""
        entering = self._submit(self.__enter__)
        try:
            return await asyncio.shield(asyncio.wrap_future(entering))
        except BaseException as error:
            # The task may be recorded although this coroutine is cancelled: then it ends here.
            self._submit(self.__exit__, type(error), error, None)
            raise

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # If the coroutine is cancelled while it waits, the thread records the end all the same.
        leaving = self._submit(self.__exit__, kind, error, traceback)
        await asyncio.shield(asyncio.wrap_future(leaving))

    def _submit(self, call: Callable[..., Returned], *arguments: Any) -> Future[Returned]:
        """Run a call in the thread, or here if the recorder is closed or Python ends."""
        try:
            return self._executor().submit(call, *arguments)
        except RuntimeError:
            done: Future[Returned] = Future()
            try:
                done.set_result(call(*arguments))
            except BaseException as error:  # noqa: BLE001 - who awaits the future gets it
                done.set_exception(error)
            return done

    def __call__(self, function: Callable[Arguments, Returned]) -> Callable[Arguments, Returned]:
        """Return a function each of whose calls is a task."""
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError("a generator runs while its values are used: record the code that does")
        if self._request_text is None and not hasattr(function, "__name__"):
            raise TypeError("recorder.task() needs the text of the request: this has no name")
        text = self._request_text or inspect.getdoc(function) or function.__name__

        def scope() -> TaskScope:
            return TaskScope(self._begin, text, self._executor)

        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def run(*args: Any, **kwargs: Any) -> Any:
                async with scope():
                    return await function(*args, **kwargs)

            return run  # type: ignore[return-value]

        @functools.wraps(function)
        def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Returned:
            with scope():
                return function(*args, **kwargs)

        return call
