"""`audit completion`: lets a shell complete commands and options."""

from __future__ import annotations

import os
from enum import StrEnum
from typing import Annotated, Final

import typer

from audit.commands.output import print_line

#: The variable by which the script of a shell asks for completions.
_VARIABLE: Final = "_AUDIT_COMPLETE"


class Shell(StrEnum):
    """The shells that there are scripts for."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def completion(
    shell: Annotated[Shell, typer.Argument(help="The shell.", show_default=False)],
) -> None:
    """Print the script for completion in a shell.

    It completes commands and options. For bash, put eval "$(audit completion bash)" into ~/.bashrc.
    For zsh, put the same with zsh into ~/.zshrc, after compinit. For fish, put audit completion
    fish | source into config.fish.
    """
    from typer.completion import get_completion_script  # type: ignore[attr-defined]

    print_line(get_completion_script(prog_name="audit", complete_var=_VARIABLE, shell=shell))


def prepare_completion() -> None:
    """Let a shell ask for completions, if it does."""
    if _VARIABLE in os.environ:
        from typer.completion import completion_init  # type: ignore[attr-defined]

        completion_init()
