"""The base install: the wheel alone in an empty environment, without task-audit[server]."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from tests.processes import serving

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MIB = 1024 * 1024


def run(*command: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd="/",
        env={
            **{name: text for name, text in os.environ.items() if not name.startswith("AUDIT_")},
            "XDG_CONFIG_HOME": os.devnull,
            **variables,
        },
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel and what `requirements.lock` pins; return the folder of the commands."""
    folder = tmp_path_factory.mktemp("base")
    venv.create(folder / "env", with_pip=False)
    python = folder / "env/bin/python"
    pip = (sys.executable, "-m", "pip", "--quiet", "--python", python, "install")
    build = (sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder)
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    lock = str(ROOT / "requirements.lock")
    for what in (("--require-hashes", "-r", lock), ("--no-deps", str(wheel))):
        subprocess.run([*pip, *what], check=True, capture_output=True)
    # Dependencies that the lock does not have would be missing here.
    subprocess.run([sys.executable, "-m", "pip", "--python", python, "check"], check=True)
    assert "audit/py.typed" in zipfile.ZipFile(wheel).namelist()
    return python.parent


@pytest.mark.slow
def test_base_install_is_small(installed: Path) -> None:
    (packages,) = installed.parent.glob("lib/python3*/site-packages")
    files = [path for path in packages.rglob("*") if "__pycache__" not in path.parts]

    assert len(list(packages.glob("*.dist-info"))) <= 22
    assert sum(path.stat().st_size for path in files) <= 40 * MIB


@pytest.mark.slow
def test_base_install_asks_and_records_through_a_service(installed: Path, dsn: str) -> None:
    audit = installed / "audit"
    record = (
        "from audit.client import Client\n"
        "import sys\n"
        "with Client(sys.argv[1]) as audit:\n"
        "    audit.record(request_text='Deploy payments', status='failed')\n"
    )
    assert 0 == run(audit, "--help").returncode
    with serving("--dsn", dsn) as (_, url, _):
        recorded = run(installed / "python", "-c", record, url)
        failures = run(audit, "failures", "--url", url, "-o", "json")
        demo = run(audit, "demo", "--tasks", "5", "--url", url)

    assert (0, "") == (recorded.returncode, recorded.stderr)
    assert (0, "") == (failures.returncode, failures.stderr)
    assert "Deploy payments" in failures.stdout
    assert json.loads(failures.stdout)
    assert (0, "recorded 5, duplicates 0\n") == (demo.returncode, demo.stdout), demo.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    ["serve", "migrate", "keys list", "counts", "openapi", "failures --dsn postgresql://x@h/d"],
)
def test_command_without_the_service_names_the_extra(installed: Path, command: str) -> None:
    done = run(installed / "audit", *command.split())

    assert (78, 1) == (done.returncode, done.stderr.count("\n")), done.stderr
    assert "pip install 'task-audit[server]'" in done.stderr
    assert 0 == run(installed / "audit", command.split(maxsplit=1)[0], "--help").returncode


@pytest.mark.slow
def test_python_without_the_service_names_the_extra(installed: Path) -> None:
    code = "from audit import Problem, Settings, Task; Settings(); import audit.recorder"
    done = run(installed / "python", "-c", code)
    assert (0, "") == (done.returncode, done.stderr)

    for name in ("AuditService", "open_pool"):
        done = run(installed / "python", "-c", f"from audit import {name}")
        expected = (
            rf"ModuleNotFoundError: audit\.{name} needs \w+: pip install 'task-audit\[server\]'"
        )
        assert re.search(expected, done.stderr)


def test_locks_have_what_their_install_needs() -> None:
    """The lock of the base install pins no package that only the service needs."""
    pinned = {
        name: set(re.findall(r"^([\w.-]+)==", (ROOT / name).read_text(), re.MULTILINE))
        for name in ("requirements.lock", "requirements-server.lock")
    }
    names = {
        extra: {re.split(r"[\[<>=;]", requirement)[0] for requirement in requirements}
        for extra, requirements in PROJECT["optional-dependencies"].items()
    }
    base = {re.split(r"[\[<>=;]", requirement)[0] for requirement in PROJECT["dependencies"]}

    assert base <= pinned["requirements.lock"] <= pinned["requirements-server.lock"]
    assert names["server"] <= pinned["requirements-server.lock"]
    assert not names["server"] & pinned["requirements.lock"]
