"""`make story`, with fewer tasks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

STORY = Path(__file__).parents[2] / "examples/story.py"


@pytest.mark.slow
def test_programs_list_export_and_feed_agree_although_the_service_is_killed_twice() -> None:
    variables = {name: text for name, text in os.environ.items() if not name.startswith("AUDIT_")}
    done = subprocess.run(
        [sys.executable, STORY, "--tasks", "30"],
        check=False, env=variables, capture_output=True, text=True, timeout=300,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("the service is killed") == 2
    assert "the export has the hash" in done.stdout
    assert done.stdout.splitlines()[-1].endswith("nothing was lost, and nothing is there twice")
