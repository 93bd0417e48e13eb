"""A callback plugin of Ansible: each run of `ansible-playbook` is a task."""

from __future__ import annotations

import atexit
import os
import re
from pathlib import Path
from typing import Any

import platformdirs
from ansible.plugins.callback import CallbackBase

from audit.recorder import RecordedTask, Recorder

DOCUMENTATION = """
    name: task_audit
    type: notification
    short_description: Records each playbook run as a task of task-audit
    description:
      - The task is executing from the first play on, and then completed or failed. It is failed
        if a host failed or was unreachable, or if the run was interrupted.
      - The request text has the names of the plays. The services are those in the variable
        C(audit_services) of the plays, or else their hosts.
      - A run never waits for the service, and does not fail because of it.
    requirements:
      - enabled by C(callbacks_enabled = task_audit), with the folder that C(audit ansible-path)
        prints in C(callback_plugins)
      - task-audit in the Python of Ansible
    options:
      url:
        description: URL of the service. Without it, the profiles of C(audit login) say it.
        env: [{name: AUDIT_URL}]
        ini: [{section: callback_task_audit, key: url}]
      key:
        description: API key of scope record.
        env: [{name: AUDIT_KEY}]
      spool:
        description: File in which records wait. By default, it is in the state folder of the user.
        env: [{name: AUDIT_SPOOL}]
        ini: [{section: callback_task_audit, key: spool}]
      created_by:
        description: Who started the run. By default, the name of the user.
        env: [{name: AUDIT_CREATED_BY}]
        ini: [{section: callback_task_audit, key: created_by}]
"""

_PROBLEMS = (("failures", "failed"), ("unreachable", "unreachable"))


class CallbackModule(CallbackBase):
    """Gets the events of a run from Ansible."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "task_audit"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._recorder: Recorder | None = None
        self._task: RecordedTask | None = None
        self._pid = os.getpid()

    def v2_playbook_on_start(self, playbook: Any) -> None:
        """Begin the task."""
        plays = playbook.get_plays()
        names = [play.get_name() or "play" for play in plays]
        services = [name for play in plays for name in _services(play)]
        try:
            self._recorder = self._open()
            self._task = self._recorder.start(
                "; ".join(dict.fromkeys(names))[:_LONGEST_TEXT] or "playbook",
                services=list(dict.fromkeys(services))[:_MOST_SERVICES],
                intent="run_playbook",
                outcome={"playbook": Path(getattr(playbook, "_file_name", "")).name},
                status="executing",
            )
        except Exception as error:  # noqa: BLE001 - a run does not fail because of its record
            self._display.warning(f"task_audit: the run is not recorded: {error}")
            return
        # After Ctrl-C or an error of Ansible itself, nothing but this is called.
        atexit.register(self._end, "the run did not reach its end")

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """End the task by what became of the hosts."""
        if self._task is None:
            return
        hosts = {host: stats.summarize(host) for host in sorted(stats.processed)}
        self._task.outcome["hosts"] = hosts
        problems = [
            f"{host}: {summary[key]} {word}"
            for host, summary in hosts.items()
            for key, word in _PROBLEMS
            if summary[key]
        ]
        self._end("; ".join(problems))

    def _end(self, problem: str) -> None:
        """End the task once. A process that Ansible has forked ends nothing."""
        task, self._task = self._task, None
        if task is None or self._recorder is None or os.getpid() != self._pid:
            return
        try:
            if problem:
                task.fail(problem)
            else:
                task.complete()
            self._recorder.close()
        except Exception as error:  # noqa: BLE001 - as above
            self._display.warning(f"task_audit: the end of the run is not recorded: {error}")

    def _open(self) -> Recorder:
        spool = self.get_option("spool")
        if not spool:
            folder = Path(platformdirs.user_state_dir("task-audit", appauthor=False))
            folder.mkdir(parents=True, exist_ok=True)
            spool = folder / "ansible.db"
        return Recorder(
            self.get_option("url"),
            key=self.get_option("key"),
            spool=spool,
            created_by=self.get_option("created_by") or os.environ.get("USER"),
        )


_LONGEST_TEXT = 65_536
_MOST_SERVICES = 100


def _services(play: Any) -> list[str]:
    """Return the services that a play names, or else its hosts and groups."""
    named = play.get_vars().get("audit_services")
    if named:
        return [named] if isinstance(named, str) else [str(name) for name in named]
    patterns = [play.hosts] if isinstance(play.hosts, str) else play.hosts
    return [name for pattern in patterns for name in re.split("[,:]", str(pattern)) if name]
