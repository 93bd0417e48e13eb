"""`audit completion`: shells complete commands and options."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.commandline import ENVIRONMENT, audit, fails_with
from tests.processes import AUDIT

SHELLS = {
    "bash": (["bash", "--norc", "-i"], 'eval "$(audit completion bash)"'),
    "zsh": (
        ["zsh", "-f", "-i"],
        'autoload -U compinit; compinit -u; eval "$(audit completion zsh)"',
    ),
}


@pytest.mark.parametrize("shell", sorted(SHELLS))
def test_a_shell_completes_what_is_typed(shell: str, tmp_path: Path) -> None:
    arguments, load = SHELLS[shell]
    if shutil.which(arguments[0]) is None:
        pytest.skip(f"there is no {shell}")
    ours, its = pty.openpty()
    process = subprocess.Popen(
        arguments,
        stdin=its,
        stdout=its,
        stderr=its,
        start_new_session=True,
        env={
            **ENVIRONMENT,
            "PATH": f"{AUDIT.parent}:{os.environ['PATH']}",
            "TERM": "dumb",
            "HOME": str(tmp_path),
            "XDG_CONFIG_HOME": str(tmp_path),
        },
    )
    try:
        os.write(ours, f"{load}; echo load''ed\n".encode())
        read_until(ours, "loaded")
        for typed, completed in (
            ("audit fai", "failures"),
            ("audit query --no-pa", "--no-pager"),
            ("audit query --status appr", "approved"),
        ):
            os.write(ours, f"{typed}\t".encode())
            read_until(ours, completed)
            os.write(ours, b"\x15")  # Ctrl-U clears the line
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(its)


def read_until(terminal: int, text: str) -> None:
    """Read until a text was shown. Shells may move the cursor between its characters."""
    shown = ""
    ends_at = time.monotonic() + 30
    while text not in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]|[\r\n\x08]", "", shown):
        assert time.monotonic() < ends_at, shown
        if select.select([terminal], [], [], 1)[0]:
            shown += os.read(terminal, 4096).decode(errors="replace")


@pytest.mark.skipif(shutil.which("fish") is None, reason="there is no fish")
@pytest.mark.parametrize(
    ("typed", "completed"), [("fai", "failures"), ("query --status appr", "approved")], ids=str
)
def test_fish_completes_what_is_typed(typed: str, completed: str, tmp_path: Path) -> None:
    line = f"audit completion fish | source; complete -C 'audit {typed}'"
    done = subprocess.run(
        ["fish", "--no-config", "-c", line],
        env={
            **ENVIRONMENT,
            "PATH": f"{AUDIT.parent}:{os.environ['PATH']}",
            "HOME": str(tmp_path),
            "XDG_CONFIG_HOME": str(tmp_path),
        },
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )

    assert completed in done.stdout.split()


def test_a_shell_that_is_not_known_is_refused() -> None:
    assert fails_with(audit("completion", "tcsh"), 2, "'bash', 'zsh', 'fish'")
