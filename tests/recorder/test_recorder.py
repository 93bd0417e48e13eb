"""What a block, a function or a call records, and what it never does to the work itself."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from opentelemetry.sdk.trace import TracerProvider

from audit.errors import Conflict, Invalid
from audit.recorder import RecordedTask, Recorder
from tests.processes import API, free_port, get
from tests.recorder.conftest import Look, Record


def test_a_block_is_a_task_that_completes(recorder: Recorder, look: Look) -> None:
    with recorder.task(
        "Deploy payments 4.2", services=["payments"], intent="deploy_service"
    ) as task:
        task.outcome["environment"] = "prod"
        task.touch("payments-db", "payments")
    assert recorder.flush()

    found = look(task.task_id)
    assert found["status"] == "completed"
    assert found["outcome"] == {"action_type": "deploy_service", "environment": "prod"}
    assert found["services_touched"] == ["payments", "payments-db"]
    assert found["created_at"] <= found["completed_at"] <= found["recorded_at"]


def test_an_exception_fails_the_task_and_goes_on(recorder: Recorder, look: Look) -> None:
    raised = TimeoutError("no answer from \ud800\0")

    with pytest.raises(TimeoutError) as caught, recorder.task("Deploy") as task:
        raise raised
    assert recorder.flush()

    found = look(task.task_id)
    assert caught.value is raised
    assert found["status"] == "failed"
    assert found["error_message"] == r"TimeoutError: no answer from \ud800\x00"


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (KeyboardInterrupt(), "failed", "interrupted: KeyboardInterrupt"),
        (asyncio.CancelledError(), "failed", "interrupted: CancelledError"),
        (SystemExit(3), "failed", "interrupted: SystemExit"),
        (SystemExit(["text"]), "failed", "interrupted: SystemExit"),
        (SystemExit(0), "completed", None),
        (SystemExit(None), "completed", None),
        (ValueError(), "failed", "ValueError"),
    ],
    ids=["Ctrl-C", "cancelled", "exit 3", "exit text", "exit 0", "exit", "no message"],
)
def test_what_ends_a_block_early(
    recorder: Recorder, look: Look, error: BaseException, status: str, message: str | None
) -> None:
    with pytest.raises(type(error)), recorder.task("Deploy") as task:
        raise error
    assert recorder.flush()

    found = look(task.task_id)
    assert (found["status"], found["error_message"]) == (status, message)


def test_a_task_that_is_rejected_in_its_block_stays_rejected(
    recorder: Recorder, look: Look
) -> None:
    with recorder.task("Deploy") as task:
        task.reject("the freeze has begun")
    assert recorder.flush()

    found = look(task.task_id)
    assert (found["status"], found["error_message"]) == ("rejected", "the freeze has begun")


def test_each_call_of_a_function_is_a_task(recorder: Recorder, url: str) -> None:
    @recorder.task(services=["calls"], intent="rotate_secret")
    def rotate(number: int) -> int:
        """Rotate the database secret."""
        return number + 1

    @recorder.task(services=["calls"])
    async def restart() -> str:
        await asyncio.sleep(0)
        return "done"

    assert (rotate(1), rotate(2), asyncio.run(restart())) == (2, 3, "done")
    assert rotate.__name__ == "rotate"
    assert recorder.flush()

    _, page = get(f"{url}{API}/by-service/calls?status=completed")
    assert sorted(task["request_text"] for task in page["tasks"]) == [
        "Rotate the database secret.",
        "Rotate the database secret.",
        "restart",
    ]


def test_a_generator_and_a_block_without_text_are_refused(recorder: Recorder) -> None:
    with pytest.raises(TypeError, match="generator"):

        @recorder.task()
        def numbers() -> Any:
            yield 1

    with pytest.raises(TypeError, match="text of the request"), recorder.task():
        pass
    scope = recorder.task("Deploy")
    with scope:
        pass
    with pytest.raises(RuntimeError, match="once"), scope:
        pass


async def test_a_cancelled_coroutine_is_a_failed_task(recorder: Recorder, look: Look) -> None:
    inside = asyncio.Event()
    tasks: list[RecordedTask] = []

    async def work() -> None:
        async with recorder.task("Deploy") as task:
            tasks.append(task)
            inside.set()
            await asyncio.Event().wait()

    working = asyncio.create_task(work())
    await inside.wait()
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working
    assert await asyncio.to_thread(recorder.flush)

    found = await asyncio.to_thread(look, tasks[0].task_id)
    assert found["error_message"] == "interrupted: CancelledError"


async def test_a_coroutine_that_is_cancelled_before_its_block_leaves_no_open_task(
    recorder: Recorder, url: str
) -> None:
    async def work() -> None:
        async with recorder.task("Deploy", services=["cancelled early"]):
            raise AssertionError("never reached")

    working = asyncio.create_task(work())
    await asyncio.sleep(0)  # it waits for the record now
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working
    await asyncio.to_thread(recorder.close)

    _, page = await asyncio.to_thread(get, f"{url}{API}/by-service/cancelled%20early")
    assert {task["status"] for task in page["tasks"]} <= {"failed"}


async def test_a_block_that_ends_after_the_recorder_was_closed_is_stored(
    make: Record, look: Look
) -> None:
    recorder = make()
    async with recorder.task("Deploy") as task:
        await asyncio.to_thread(recorder.close)
    with pytest.raises(Invalid):
        async with recorder.task(""):
            raise AssertionError("never reached")
    async with recorder.task("Clean up") as later:
        pass

    assert await asyncio.to_thread(make().flush)
    for task_id in (task.task_id, later.task_id):
        assert (await asyncio.to_thread(look, task_id))["status"] == "completed"


def test_states_that_the_caller_reports(recorder: Recorder, look: Look, url: str) -> None:
    task = recorder.start("Deploy", services=["payments"], outcome={"region": "eu"})
    assert recorder.flush()
    task.approve(by="ada")
    assert recorder.flush()
    task.execute()
    assert recorder.flush()
    task.complete({"version": "4.2"})
    assert recorder.flush()

    assert look(task.task_id)["outcome"] == {
        "region": "eu",
        "approved_by": "ada",
        "version": "4.2",
    }
    _, history = get(f"{url}{API}/tasks/{task.task_id}/history")
    assert [event["status"] for event in history["events"]] == [
        "pending",
        "approved",
        "executing",
        "completed",
    ]
    with pytest.raises(Conflict, match="completed already"):
        task.fail("too late")


def test_a_task_is_resumed_by_its_id(recorder: Recorder, look: Look) -> None:
    task_id = recorder.start("Deploy", created_by="ada").task_id
    assert recorder.flush()

    recorder.resume(task_id).fail("the host is gone")
    assert recorder.flush()

    found = look(task_id)
    assert (found["status"], found["created_by"]) == ("failed", "ada")
    assert found["error_message"] == "the host is gone"


@pytest.mark.parametrize(
    ("members", "field"),
    [
        ({"services": ["a" * 256]}, "services_touched"),
        ({"outcome": {"size": float("nan")}}, "outcome.size"),
        ({"created_by": ""}, "created_by"),
        ({"unknown": 1}, "unknown"),
        ({"services": "payments"}, "services_touched: must be a list"),
        ({"outcome": "deployed"}, "outcome: must be a mapping"),
    ],
    ids=["long name", "NaN", "empty", "unknown", "one text", "no mapping"],
)
def test_invalid_content_raises_before_the_work_begins(
    recorder: Recorder, members: dict[str, Any], field: str
) -> None:
    with pytest.raises(Invalid, match=field), recorder.task("Deploy", **members):
        raise AssertionError("the work began")

    assert recorder.stats().waiting == 0


def test_calls_that_cannot_be_meant_raise(make: Record, recorder: Recorder) -> None:
    with pytest.raises(ValueError, match="on_full must be raise or drop-and-count"):
        make(on_full="ignore")
    with pytest.raises(ValueError, match="orphans must be fail or leave"):
        make(orphans="kill")
    with pytest.raises(Invalid, match="status: must be one of pending"):
        recorder.start("Deploy", status="done")
    with pytest.raises(Invalid, match="services_touched: must be a list"):
        recorder.resume(str(uuid4()), services="payments")
    with pytest.raises(TypeError, match="parentheses"):
        recorder.task(print)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="has no name"):
        recorder.task()(partial(print, "Deploy"))

    task = recorder.start("Deploy", status="executing")
    with pytest.raises(Conflict, match="executing, so it cannot become approved"):
        task.approve()
    task.execute()
    task.complete()


def test_an_invalid_outcome_at_the_end_does_not_disturb_the_work(
    recorder: Recorder, look: Look, errors: list[Exception]
) -> None:
    with recorder.task("Deploy", intent="deploy_service") as task:
        task.outcome["secret"] = object()
    assert recorder.flush()

    found = look(task.task_id)
    assert (found["status"], found["outcome"]) == ("completed", {"action_type": "deploy_service"})
    assert [type(error) for error in errors] == [Invalid]


def test_what_is_redacted_is_neither_stored_nor_sent(
    make: Record, look: Look, tmp_path: Path
) -> None:
    def redact(members: dict[str, Any]) -> dict[str, Any]:
        text = json.dumps(members, default=str).replace("hunter2", "…")
        found = json.loads(text)
        assert isinstance(found, dict)
        return found

    recorder = make(redact=redact)
    with pytest.raises(ValueError), recorder.task("Set hunter2") as task:  # noqa: PT011
        raise ValueError("hunter2 is too short")
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert recorder.flush()

    found = look(task.task_id)
    assert b"hunter2" not in stored
    assert found["request_text"] == "Set …"
    assert found["error_message"] == "ValueError: … is too short"


def test_a_redaction_that_fails_at_the_end_leaves_only_the_state(
    make: Record, look: Look, errors: list[Exception]
) -> None:
    def redact(members: dict[str, Any]) -> dict[str, Any]:
        if "error_message" in members:
            raise KeyError("rules")
        return members

    recorder = make(redact=redact)
    with pytest.raises(ValueError), recorder.task("Deploy") as task:  # noqa: PT011
        raise ValueError("a secret")
    assert recorder.flush()

    found = look(task.task_id)
    assert (found["status"], found["error_message"]) == ("failed", None)
    assert [type(error) for error in errors] == [KeyError]


def test_long_errors_are_cut_and_tracebacks_are_recorded_if_wanted(
    make: Record, look: Look
) -> None:
    short, traced = make(max_text=20), make(traceback=True)
    tasks = []
    for recorder in (short, traced):
        with pytest.raises(ValueError), recorder.task("Deploy") as task:  # noqa: PT011
            raise ValueError("x" * 100)
        tasks.append(task.task_id)
    assert short.flush()

    first, second = (look(task_id)["error_message"] for task_id in tasks)
    assert first == "ValueError: x… (cut)"
    assert "Traceback (most recent call last)" in second


def test_a_task_names_the_span_that_it_runs_in(recorder: Recorder, look: Look) -> None:
    tracer = TracerProvider().get_tracer("test")
    with tracer.start_as_current_span("deploy") as span, recorder.task("Deploy") as task:
        pass
    assert recorder.flush()

    context = span.get_span_context()
    assert look(task.task_id)["outcome"] == {
        "trace_id": f"{context.trace_id:032x}",
        "span_id": f"{context.span_id:016x}",
    }


def test_without_a_spool_records_are_sent_at_once(make: Record, look: Look) -> None:
    recorder = make(spool=None)

    with recorder.task("Deploy") as task:
        assert look(task.task_id)["status"] == "executing"

    assert look(task.task_id)["status"] == "completed"
    assert recorder.flush()


def test_without_a_spool_and_a_service_work_goes_on_and_the_loss_is_counted(
    make: Record, errors: list[Exception]
) -> None:
    recorder = make(f"http://127.0.0.1:{free_port()}", spool=None)

    with recorder.task("Deploy"):
        pass

    assert recorder.stats().dropped == len(errors) == 2
