"""The programs that some tests need and a machine may lack.

A test calls `needs("nginx")` for the path of the program. If the machine has none, the test is
skipped with a reason that names the Debian package. When AUDIT_TEST_NO_SKIPS=1, as in `.ci/run`,
the test fails instead, so that no such test is ever left out unnoticed.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest

#: The Debian package of each program, where it has another name.
PACKAGES = {
    "ip": "iproute2",
    "libfaketime.so.1": "libfaketime",
    "node": "nodejs",
    "npx": "npm",
    "postgres": "postgresql",
    "systemd-analyze": "systemd",
}
#: Debian installs daemons where the PATH of an ordinary user does not look.
FOLDERS = (
    "/usr/sbin",
    "/usr/local/sbin",
    "/sbin",
    *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)),
)


def needs(name: str) -> Path:
    """Return the path of a program or of a shared library; skip the test if there is none."""
    found = _library(name) if ".so" in name else _program(name)
    if found is None:
        do_without(f"no {name}: install the package {PACKAGES.get(name, name)}")
    return found


def do_without(reason: str) -> NoReturn:
    """Skip the test, because the machine lacks what it needs."""
    if _allows_no_skip():
        pytest.fail(f"{reason} (AUDIT_TEST_NO_SKIPS=1 allows no skip)", pytrace=False)
    pytest.skip(reason, allow_module_level=True)


def needs_installed(what: str, target: str, *, found: bool) -> pytest.MarkDecorator:
    """Return a marker for tests of what `make TARGET` installs: skipped unless it is there.

    When AUDIT_TEST_NO_SKIPS=1, they run, and fail.
    """
    reason = f"no {what}: run make {target}"
    return pytest.mark.skipif(not found and not _allows_no_skip(), reason=reason)


def _allows_no_skip() -> bool:
    return os.environ.get("AUDIT_TEST_NO_SKIPS") == "1"


def _program(name: str) -> Path | None:
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *FOLDERS])
    found = shutil.which(name, path=path)
    return Path(found) if found else None


def _library(name: str) -> Path | None:
    return next(iter(sorted(Path("/usr/lib").glob(f"*/*/{name}"))), None)
