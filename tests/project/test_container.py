"""The image's recipe, without a container engine: its paths exist, and its steps work."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import urllib.request
from pathlib import Path

import pytest
import yaml

from audit.dsn import parse
from audit.settings import Settings
from tests.processes import serving

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")


def instructions(stage: str, *kinds: str) -> list[tuple[str, str]]:
    lines = [line.partition(" ") for line in stage.splitlines() if not line.startswith("#")]
    return [(kind, rest.strip()) for kind, _, rest in lines if kind in kinds]


def copied() -> list[str]:
    return [
        source
        for _, rest in instructions(DOCKERFILE, "COPY")
        if "--from" not in rest
        for source in shlex.split(rest)[:-1]
    ]


def test_every_path_that_the_image_copies_exists_and_is_not_ignored() -> None:
    kept = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }

    assert copied()
    assert [] == [path for path in copied() if not (ROOT / path).exists()]
    assert set(copied()) == kept


def test_image_runs_as_an_ordinary_user_and_tells_its_health() -> None:
    final = DOCKERFILE.split("\nFROM ")[-1]

    assert [("USER", "10001")] == instructions(final, "USER")
    assert [("ENTRYPOINT", '["audit"]')] == instructions(final, "ENTRYPOINT")
    assert "/healthz" in final.partition("HEALTHCHECK")[2]


def test_compose_works_with_any_password(monkeypatch: pytest.MonkeyPatch) -> None:
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())
    environment = compose["services"]["audit"]["environment"]
    monkeypatch.setenv("PGPASSWORD", "Ab/+c=")

    assert environment["PGPASSWORD"].startswith("${POSTGRES_PASSWORD")
    assert "database:5432/audit" == parse(environment["AUDIT_DSN"]).name
    assert "Ab/+c=" == parse(environment["AUDIT_DSN"])["password"]


def test_compose_uses_settings_that_exist() -> None:
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())
    service = compose["services"]["audit"]
    variables = {f"AUDIT_{name.upper()}" for name in Settings.model_fields}

    assert (ROOT / service["build"] / "Dockerfile").exists()
    assert {"AUDIT_DSN", "AUDIT_MIGRATE", "AUDIT_INSECURE", "PGPASSWORD"} == set(
        service["environment"]
    )
    assert set(service["environment"]) - {"PGPASSWORD"} <= variables
    assert set(service["depends_on"]) <= set(compose["services"])


@pytest.mark.slow
def test_the_steps_of_the_image_give_a_service_that_answers(tmp_path: Path, dsn: str) -> None:
    """The wheel, built from what the image copies alone, in an environment with nothing else."""
    source = tmp_path / "src"
    source.mkdir()
    environment = {
        name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_"))
    } | {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    build = DOCKERFILE.split("\nFROM ")[1]
    for kind, rest in instructions(build, "COPY", "RUN"):
        if kind == "COPY":
            for path in shlex.split(rest)[:-1]:
                copy = shutil.copytree if (ROOT / path).is_dir() else shutil.copy
                copy(ROOT / path, source / path)
        else:
            step = rest.replace("/opt/", f"{tmp_path}/opt/").replace(
                "pip install", "pip install -q"
            )
            subprocess.run(step, shell=True, check=True, cwd=source, env=environment)
    shutil.rmtree(source)

    audit = tmp_path / "opt/audit/bin/audit"
    with serving("--dsn", dsn, audit=[audit]) as (_, url, _):
        with urllib.request.urlopen(f"{url}/api/v1/audit/failures") as answer:
            assert json.load(answer)["total"] == 0
        with urllib.request.urlopen(f"{url}/docs") as answer:
            assert answer.status == 200
        with urllib.request.urlopen(f"{url}/tasks") as answer:
            (script,) = re.findall(r'src="([^"]+/main.js)"', answer.read().decode())
        with urllib.request.urlopen(f"{url}/{script}") as answer:
            assert answer.read() == (ROOT / "audit/web/static/page/main.js").read_bytes()
    subprocess.run([audit, "migrate", "--status", "--dsn", dsn], check=True, cwd=tmp_path)
