"""Clients that others' tools generate from the document work, and satisfy strict type checkers.

`make test` installs the tools: those of Python into .venv/generators, those of Node into .venv/node
where there is npm.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from audit.web.openapi import document
from tests.commandline import audit
from tests.needs import needs_installed
from tests.processes import serving

HERE = Path(__file__).parents[1]
SOURCES = HERE / "generators"
PYTHON = HERE.parent / ".venv/generators/bin"
NODE = HERE.parent / ".venv/node/node_modules"
#: Tools that would look for updates or send statistics.
QUIET = {"REDOCLY_TELEMETRY": "off", "REDOCLY_SUPPRESS_UPDATE_NOTICE": "true", "CI": "true"}

needs_python_tools = needs_installed(
    "Python generators",
    ".venv/installed-generators",
    found=(PYTHON / "openapi-python-client").exists(),
)
needs_node = needs_installed(
    "Node with the packages of tests/generators",
    ".venv/installed-generators",
    found=shutil.which("node") is not None and (NODE / ".bin/tsc").exists(),
)

Run = Callable[..., subprocess.CompletedProcess[str]]

EXPECTED = {
    "recorded": [1, 5],
    "listed": [4, 6],
    "crawled": [f"Deploy {number}" for number in range(1, 7)],
    "changed": ["failed", "no space left"],
    "history": ["generated", "executing", "failed"],
    "failures": ["Deploy 2"],
    "missing": [404, "urn:task-audit:problem:task-not-found"],
    "refused": ["days"],
}


@pytest.fixture
def running(dsn: str) -> Iterator[tuple[str, str]]:
    """The URL of a service and a key for it."""
    scopes = ("--scope", "read", "--scope", "record")
    key = audit("keys", "create", "--name", "generated", *scopes, AUDIT_DSN=dsn)[1].strip()
    with serving("--workers", "1", AUDIT_DSN=dsn) as (_, url, _):
        yield url, key


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run a command in the test's folder; it has to succeed."""

    def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join([str(PYTHON), os.environ["PATH"]])
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=tmp_path,
            env={**os.environ, **QUIET, "PATH": path},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
        return done

    return run


def fetch(url: str, path: Path) -> Path:
    """Keep the document that a service serves."""
    with urllib.request.urlopen(f"{url}/openapi.json") as response:
        path.write_bytes(response.read())
    return path


def test_locks_have_hashes_and_name_no_registry() -> None:
    lock = json.loads((SOURCES / "package-lock.json").read_text())
    packages = [package for path, package in lock["packages"].items() if path]

    assert all(package["integrity"] for package in packages)
    assert [package for package in packages if "resolved" in package] == []
    for python_lock in HERE.parent.glob("requirements*.lock"):
        assert "://" not in python_lock.read_text()


@needs_python_tools
def test_openapi_python_client(running: tuple[str, str], run: Run, tmp_path: Path) -> None:
    served = fetch(running[0], tmp_path / "openapi.json")

    done = run(
        PYTHON / "openapi-python-client",
        *("generate", "--path", served),
        *("--output-path", tmp_path / "task_audit_client", "--meta", "none"),
    )

    # It knows no NDJSON, and records one task or an array of them.
    warnings = re.findall(r"^WARNING (.*)\n\n(.*)$", done.stderr, re.MULTILINE)
    assert {what for _, what in warnings} == {"Unsupported content type application/x-ndjson"}
    program = shutil.copy(SOURCES / "client.py", tmp_path / "program.py")
    assert json.loads(run(PYTHON / "python", program, *running).stdout) == EXPECTED
    # What the tool generates is not strict by itself; a program on it can be.
    config = "[mypy]\nstrict = true\n[mypy-task_audit_client.*]\nfollow_imports = silent\n"
    (tmp_path / "mypy.ini").write_text(config)
    mypy = Path(sys.executable).with_name("mypy")
    run(mypy, "--python-executable", PYTHON / "python", program)


@needs_node
def test_openapi_typescript(running: tuple[str, str], run: Run, tmp_path: Path) -> None:
    served = fetch(running[0], tmp_path / "openapi.json")
    (tmp_path / "node_modules").symlink_to(NODE)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    shutil.copy(SOURCES / "client.ts", tmp_path / "client.ts")

    run(NODE / ".bin/openapi-typescript", served, "--output", tmp_path / "schema.d.ts")
    run(
        NODE / ".bin/tsc", "--strict", "--exactOptionalPropertyTypes", "--noUncheckedIndexedAccess",
        "--target", "es2022", "--module", "nodenext", "client.ts",
    )  # fmt: skip

    assert json.loads(run("node", "client.js", *running).stdout) == EXPECTED


@needs_node
def test_redocly_finds_no_error(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "openapi.json"
    path.write_text(json.dumps(document()))

    found = json.loads(run(NODE / ".bin/redocly", "lint", "--format", "json", path).stdout)

    assert found["totals"]["errors"] == 0
    # Of operations that refuse nothing.
    assert {problem["ruleId"] for problem in found["problems"]} <= {"operation-4xx-response"}


@needs_node
def test_pyright_strict_accepts_the_python_example(run: Run, tmp_path: Path) -> None:
    page = (HERE.parent / "docs/python.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "example.py").write_text(code)
    (tmp_path / "pyrightconfig.json").write_text('{"typeCheckingMode": "strict"}')

    done = run(NODE / ".bin/pyright", "--pythonpath", sys.executable, "example.py")

    assert "0 errors, 0 warnings" in done.stdout


@needs_python_tools
def test_generated_models_read_answers_of_a_later_version(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "openapi.json"
    path.write_text(json.dumps(document()))
    run(
        PYTHON / "datamodel-codegen", "--input", path, "--input-file-type", "openapi",
        "--output-model-type", "pydantic_v2.BaseModel", "--output", "task_audit_models.py",
    )  # fmt: skip
    shutil.copy(SOURCES / "models.py", tmp_path / "program.py")
    later = {"of_a_later_version": {"x": 1}}
    answers = document()["paths"]
    page = example(answers["/api/v1/audit/query"]["get"], "200", "first_page")
    page["tasks"] = [{**one, **later} for one in page["tasks"]]
    task = example(answers["/api/v1/audit/tasks/{task_id}"]["get"], "200", "task")
    recorded = example(answers["/api/v1/audit/tasks"]["post"], "201", "recorded")
    problem = {"type": "a", "title": "No", "status": 404, "detail": "b", "instance": "c"}

    done = run(
        PYTHON / "python", "program.py",
        *(json.dumps({**body, **later}) for body in (page, task, recorded, problem)),
    )  # fmt: skip

    expected = [page["tasks"][0]["request_text"], task["status"], recorded["recorded"], "No"]
    assert done.stdout.splitlines() == [str(value) for value in expected]


def example(operation: dict[str, Any], status: str, name: str) -> dict[str, Any]:
    content = operation["responses"][status]["content"]["application/json"]
    value: dict[str, Any] = content["examples"][name]["value"]
    return value
