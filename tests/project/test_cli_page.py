"""The commands of docs/cli.md work."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from tests.commandline import audit, lines
from tests.conftest import task
from tests.processes import AUDIT, serving

PAGE = (Path(__file__).parents[2] / "docs/cli.md").read_text()
BLOCKS = re.findall(r"^```sh\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def test_commands_of_the_page_work(dsn: str, tmp_path: Path) -> None:
    """Those with a profile need the service that they name; other tests run them."""
    audit("record", "-", given=lines(task(status="failed"), task()), AUDIT_DSN=dsn)
    with serving("--workers", "1", AUDIT_DSN=dsn) as (_, url, _):
        for block in BLOCKS:
            if "audit login" not in block:
                done = subprocess.run(
                    ["bash", "-e", "-o", "pipefail", "-c", block],
                    text=True,
                    capture_output=True,
                    check=False,
                    cwd=tmp_path,
                    env={
                        **os.environ,
                        "AUDIT_URL": url,
                        "NO_PROXY": "*",
                        "XDG_CONFIG_HOME": str(tmp_path),
                        "PATH": f"{AUDIT.parent}:{os.environ['PATH']}",
                    },
                )
                assert 0 == done.returncode, done.stderr
                assert done.stdout or "audit export" in block
