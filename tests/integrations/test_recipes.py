"""The recipes of the page, as they are printed. Stand-ins take the place of Airflow and Prefect."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from tests.conftest import execute
from tests.needs import needs

PAGE = (Path(__file__).parents[2] / "docs/integrations.md").read_text()
MODULES: dict[str, dict[str, Any]] = {
    "airflow": {},
    "airflow.listeners": {"hookimpl": lambda function: function},
    "airflow.plugins_manager": {"AirflowPlugin": object},
    "prefect": {"flow": lambda **hooks: lambda function: (function, hooks)},
}


def recipe(section: str, language: str = "python") -> str:
    """Return the only block of a section in this language."""
    (text,) = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    (block,) = re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return str(block)


Load = Callable[[str], dict[str, Any]]


@pytest.fixture
def load(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Execute the recipe of a section, with a spool of the test; return its names."""
    monkeypatch.setenv("AUDIT_URL", url)
    monkeypatch.delenv("AUDIT_KEY", raising=False)
    for name, members in MODULES.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)

    def load(section: str) -> dict[str, Any]:
        text = re.sub(r"/var/lib/\w+", str(tmp_path), recipe(section))
        names: dict[str, Any] = {}
        exec(compile(text, section, "exec"), names)  # noqa: S102 - a block of our own page
        return names

    return load


def recorded(names: dict[str, Any], dsn: str, intent: str) -> list[tuple[Any, ...]]:
    """Close the recorder of a recipe, and return the tasks of an intent that the service has."""
    recorder = names["recorder"]
    assert recorder.flush(60)
    assert (recorder.stats().running, recorder.stats().refused) == (0, 0)
    recorder.close()
    return execute(
        dsn,
        "SELECT request_text, status::text, error_message, created_by, created_at, services_touched"
        f" FROM tasks WHERE outcome->>'action_type' = '{intent}' ORDER BY status::text",
    )


def test_the_runs_of_airflow(load: Load, shared_dsn: str) -> None:
    names = load("Airflow")
    (listener,) = names["TaskAudit"].listeners
    began = datetime.now(UTC)

    def run(clear_number: int) -> SimpleNamespace:
        return SimpleNamespace(
            dag_id="load_orders", run_id="manual__1", clear_number=clear_number, start_date=began
        )

    listener.on_dag_run_running(run(0), "started")
    listener.on_dag_run_running(run(0), "started")  # of another scheduler
    listener.on_dag_run_failed(run(0), "task_failure")
    listener.on_dag_run_running(run(1), "started")
    listener.on_dag_run_success(run(1), "")

    assert recorded(names, shared_dsn, "load_orders") == [
        ("Run load_orders", "completed", None, "airflow", began, []),
        ("Run load_orders", "failed", "task_failure", "airflow", began, []),
    ]


@pytest.mark.parametrize(
    ("hook", "state", "end"),
    [
        ("on_completion", ("Completed", None), ("completed", None)),
        ("on_failure", ("Failed", "no room"), ("failed", "no room")),
        ("on_crashed", ("Crashed", "killed"), ("failed", "killed")),
        ("on_cancellation", ("Cancelling", None), ("failed", "Cancelling")),
    ],
)
def test_the_runs_of_prefect(
    load: Load,
    shared_dsn: str,
    hook: str,
    state: tuple[str, str | None],
    end: tuple[str, str | None],
) -> None:
    names = load("Prefect")
    _, hooks = names["deploy_payments"]
    flow = SimpleNamespace(name=f"deploy-{hook}")
    run = SimpleNamespace(id=uuid4(), tags=["payments", "db"], created=datetime.now(UTC))

    def enter(hook: str, name: str, message: str | None = None) -> None:
        for call in hooks[hook]:
            call(flow, run, SimpleNamespace(name=name, message=message))

    enter("on_running", "Running")
    enter("on_running", "Running")  # it was suspended in between
    assert names["recorder"].flush(60)
    enter("on_running", "Retrying")
    enter(hook, *state)

    assert recorded(names, shared_dsn, flow.name) == [
        (f"Run {flow.name}", *end, "prefect", run.created, ["db", "payments"])
    ]


def test_a_program_that_uses_requests(variables: dict[str, str], shared_dsn: str) -> None:
    program = recipe("Any program that speaks HTTP").replace("Deploy payments", "Deploy requests")
    subprocess.run(
        [sys.executable, "-c", program],
        env={**variables, "AUDIT_KEY": "unused"},
        check=True,
        timeout=60,
    )

    assert one(shared_dsn, "Deploy requests 4.2") == "completed"


def test_a_program_that_uses_curl(variables: dict[str, str], shared_dsn: str) -> None:
    needs("curl")
    script = recipe("Any program that speaks HTTP", "sh").replace("Deploy payments", "Deploy curl")
    subprocess.run(
        ["sh", "-e", "-c", script], env={**variables, "AUDIT_KEY": "unused"}, check=True, timeout=60
    )

    assert one(shared_dsn, "Deploy curl 4.2") == "completed"


def one(dsn: str, text: str) -> str:
    """Return the state of the only task with a request text."""
    ((status,),) = execute(dsn, f"SELECT status::text FROM tasks WHERE request_text = '{text}'")
    return str(status)
