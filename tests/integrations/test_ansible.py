"""Real runs of `ansible-playbook`, each of which is recorded as a task."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from audit.recorder import Recorder
from tests.commandline import audit
from tests.conftest import execute
from tests.needs import needs_installed
from tests.waiting import wait_until

PLAYBOOK = Path(sys.prefix) / "integrations" / "bin" / "ansible-playbook"

pytestmark = needs_installed("Ansible", ".venv/installed-integrations", found=PLAYBOOK.exists())


@pytest.fixture
def environment(variables: dict[str, str], tmp_path: Path) -> dict[str, str]:
    _, folder, _ = audit("ansible-path")
    (tmp_path / "hosts").write_text("[web]\nhere ansible_connection=local\n")
    return {
        **variables,
        "ANSIBLE_CALLBACKS_ENABLED": "task_audit",
        "ANSIBLE_CALLBACK_PLUGINS": folder.strip(),
        "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
        "AUDIT_CREATED_BY": "ada",
    }


def start(environment: dict[str, str], tmp_path: Path, play: str) -> subprocess.Popen[bytes]:
    (tmp_path / "play.yml").write_text(play)
    return subprocess.Popen(
        [PLAYBOOK, "-i", "hosts", "play.yml"],
        env=environment, cwd=tmp_path, stdout=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip


def recorded(environment: dict[str, str], dsn: str, text: str) -> dict[str, Any]:
    """Send what the run left in its spool, and return the members of its task."""
    with Recorder(environment["AUDIT_URL"], spool=environment["AUDIT_SPOOL"]) as recorder:
        assert recorder.flush(60)
    rows = execute(
        dsn,
        "SELECT status::text, error_message, services_touched, outcome, created_by"
        f" FROM tasks WHERE request_text = '{text}'",
    )
    assert len(rows) <= 1
    names = ("status", "error", "services", "outcome", "created_by")
    return dict(zip(names, rows[0], strict=True)) if rows else {}


def test_a_run_that_succeeds(environment: dict[str, str], tmp_path: Path, shared_dsn: str) -> None:
    play = """
- name: Deploy payments
  hosts: here
  gather_facts: false
  vars: {audit_services: [payments, payments-db]}
  tasks: [{command: 'true'}]
- name: Check payments
  hosts: here
  gather_facts: false
  tasks: [{command: 'true'}]
"""
    assert start(environment, tmp_path, play).wait(120) == 0

    task = recorded(environment, shared_dsn, "Deploy payments; Check payments")
    assert (task["status"], task["error"], task["created_by"]) == ("completed", None, "ada")
    assert task["services"] == ["payments", "payments-db", "here"]
    assert task["outcome"]["action_type"] == "run_playbook"
    assert task["outcome"]["playbook"] == "play.yml"
    assert task["outcome"]["hosts"]["here"]["ok"] == 2


def test_a_run_in_which_a_host_fails_and_one_is_unreachable(
    environment: dict[str, str], tmp_path: Path, shared_dsn: str
) -> None:
    play = """
- name: Fail
  hosts: web
  gather_facts: false
  tasks: [{command: 'false'}]
"""
    ssh = tmp_path / "ssh"  # its exit code 255 stands for a connection that failed
    ssh.write_text("#!/bin/sh\nexit 255\n")
    ssh.chmod(0o755)
    (tmp_path / "hosts").write_text(
        f"[web]\nhere ansible_connection=local\nthere ansible_ssh_executable={ssh}\n"
    )
    assert start(environment, tmp_path, play).wait(120) != 0

    task = recorded(environment, shared_dsn, "Fail")
    assert task["status"] == "failed"
    assert task["services"] == ["web"]
    assert "here: 1 failed" in task["error"]
    assert "there: 1 unreachable" in task["error"]


def test_a_run_that_is_interrupted(
    environment: dict[str, str], tmp_path: Path, shared_dsn: str
) -> None:
    play = f"""
- name: Wait
  hosts: here
  gather_facts: false
  tasks: [{{shell: 'touch {tmp_path}/waits; sleep 100'}}]
"""
    process = start(environment, tmp_path, play)
    wait_until((tmp_path / "waits").exists)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) != 0

    task = recorded(environment, shared_dsn, "Wait")
    assert (task["status"], task["error"]) == ("failed", "the run did not reach its end")


def test_a_run_does_not_fail_because_it_cannot_be_recorded(
    environment: dict[str, str], tmp_path: Path, shared_dsn: str
) -> None:
    play = """
- name: Unrecorded
  hosts: here
  gather_facts: false
  tasks: [{command: 'true'}]
"""
    environment["AUDIT_SPOOL"] = str(tmp_path / "missing" / "spool.db")
    assert start(environment, tmp_path, play).wait(120) == 0

    assert execute(shared_dsn, "SELECT 1 FROM tasks WHERE request_text = 'Unrecorded'") == []
