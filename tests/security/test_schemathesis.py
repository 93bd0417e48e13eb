"""Requests made up from the OpenAPI document, by schemathesis with all its checks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from audit.web.openapi import document
from tests.commandline import audit
from tests.conftest import execute
from tests.processes import serving

HERE = Path(__file__).parent
EXAMPLES = os.environ.get("AUDIT_TEST_EXAMPLES", "20")


def test_whatever_is_sent_is_answered_as_the_document_says(dsn: str, tmp_path: Path) -> None:
    scopes = [option for scope in ("read", "record", "admin") for option in ("--scope", scope)]
    key = audit("keys", "create", "--name", "schemathesis", *scopes, AUDIT_DSN=dsn)[1].strip()

    with serving("--workers", "2", "--rate-per-second", "0", AUDIT_DSN=dsn) as (_, url, _):
        done = subprocess.run(
            [
                *(Path(sys.executable).with_name("schemathesis"), "--no-color"),
                *("--config-file", HERE / "schemathesis.toml"),
                *("run", f"{url}/openapi.json", "--checks", "all", "--workers", "1"),
                *("--max-examples", EXAMPLES, "--header", f"Authorization: Bearer {key}"),
            ],
            capture_output=True, text=True, check=False, cwd=tmp_path,
            env={
                **os.environ,
                "SCHEMATHESIS_HOOKS": "schemathesis_hooks",
                "PYTHONPATH": str(HERE),
            },
        )  # fmt: skip

    assert done.returncode == 0, done.stdout[-80_000:] + done.stderr[-2000:]
    operations = sum(len(methods) for methods in document()["paths"].values())
    assert f"Tested: {operations}" in done.stdout
    assert "tasks" in str(execute(dsn, "SELECT 'tasks' FROM tasks LIMIT 1")), "nothing was recorded"
