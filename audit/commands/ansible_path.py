"""`audit ansible-path`: prints the folder of the callback plugin for Ansible."""

from __future__ import annotations

from importlib.resources import files

from audit.commands.output import print_line


def ansible_path() -> None:
    """Print the folder of the plugin for Ansible.

    It has the plugin task_audit, and belongs into Ansible's callback_plugins.
    """
    print_line(str(files("audit.integrations") / "ansible_plugins"))
