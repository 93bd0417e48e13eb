"""A service, and programs in the environment of Celery and Ansible."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import serving

BIN = Path(sys.prefix) / "integrations" / "bin"


@pytest.fixture(scope="module")
def url(shared_dsn: str) -> Iterator[str]:
    """The URL of a service, whose database the tests of a module share."""
    with serving("--dsn", shared_dsn, log=subprocess.DEVNULL) as (_, url, _lines):
        yield url


@pytest.fixture
def variables(url: str, tmp_path: Path) -> dict[str, str]:
    """The environment of a program that records."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("AUDIT_")},
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "AUDIT_URL": url,
        "AUDIT_SPOOL": str(tmp_path / "spool.db"),
    }
