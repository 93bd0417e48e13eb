"""Standard output as people see it: its width, colours and characters, and the pager."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import Self

from audit.telemetry.logs import escaped


class Color(StrEnum):
    """When to colour: on terminals, always or never."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class Look:
    """What the output can show."""

    width: int | None
    """The width of the terminal. None if there is no terminal: then nothing is cut."""
    height: int | None
    is_styled: bool
    """Whether colours and hyperlinks are shown."""
    encoding: str

    @property
    def is_ascii(self) -> bool:
        """Whether only ASCII characters can be shown for sure."""
        return self.encoding.lower().replace("-", "") != "utf8"

    @property
    def ellipsis(self) -> str:
        """What marks a text that is cut."""
        return "..." if self.is_ascii else "…"

    def inert(self, text: str) -> str:
        """Return a text in one line that cannot move the cursor or change the text around it."""
        shown = escaped(text)
        if self.is_ascii:
            return shown.encode(self.encoding, "backslashreplace").decode(self.encoding)
        return shown

    def data(self, text: str) -> str:
        """Return lines for programs; on a terminal, without control characters."""
        if self.width is None or text.isprintable():
            return text
        lines = (line.split("\t") for line in text.split("\n"))
        return "\n".join("\t".join(map(self.inert, cells)) for cells in lines)

    def styled(self, text: str, style: str = "", link: str | None = None) -> str:
        """Return a text in a style of rich, with a hyperlink, if the output shows them."""
        if not self.is_styled or not text or not (style or link):
            return text
        from rich.color import ColorSystem
        from rich.style import Style

        made = Style.parse(style) + Style(link=link)
        return made.render(text, color_system=ColorSystem.STANDARD)

    def fit(self, text: str, width: int | None, *, right: bool = False) -> str:
        """Return a text in exactly `width` cells: cut with an ellipsis, or padded."""
        from rich.cells import cell_len, set_cell_size

        if width is None:
            return text
        missing = width - cell_len(text)
        if missing < 0:
            kept = max(0, width - len(self.ellipsis))
            return set_cell_size(text, kept) + self.ellipsis[: width - kept]
        return " " * missing + text if right else text + " " * missing


def look_of_output(color: Color, variables: Mapping[str, str] = os.environ) -> Look:
    """Return what standard output can show, as the terminal and the variables say."""
    width = height = None
    is_terminal = sys.stdout.isatty()
    if is_terminal:
        width, height = shutil.get_terminal_size()
    if color is Color.AUTO:
        is_capable = is_terminal and variables.get("TERM") != "dumb"
        is_styled = not variables.get("NO_COLOR") and bool(
            variables.get("FORCE_COLOR") or is_capable
        )
    else:
        is_styled = color is Color.ALWAYS
    return Look(width, height, is_styled, sys.stdout.encoding or "ascii")


class Screen:
    """Writes to standard output; text that is longer than the terminal goes through a pager.

    Leaving the block writes the rest, and waits until the pager ends.
    """

    def __init__(self, look: Look, *, may_page: bool) -> None:
        self._held: list[str] | None = [] if may_page and look.height else None
        self._height = look.height or 0
        self._lines = 0
        self._pager: subprocess.Popen[str] | None = None

    def write(self, text: str) -> None:
        """Write a text that ends with a line feed.

        Raises:
            BrokenPipeError: the reader has closed the pipe, or the user has left the pager.
        """
        if self._held is None:
            self._write_now(text)
            return
        self._held.append(text)
        self._lines += text.count("\n")
        if self._lines >= self._height:
            self._pager = _start_pager()
            self._release()

    def flush(self) -> None:
        """Show now what was written, even if more follows."""
        self._release()
        (self._pager.stdin if self._pager and self._pager.stdin else sys.stdout).flush()

    def _release(self) -> None:
        held, self._held = self._held, None
        for text in held or ():
            self._write_now(text)

    def _write_now(self, text: str) -> None:
        stream = self._pager.stdin if self._pager else sys.stdout
        if stream:
            stream.write(text)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        failure: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self.flush()
        finally:
            if self._pager is not None:
                if self._pager.stdin:
                    with contextlib.suppress(BrokenPipeError):
                        self._pager.stdin.close()
                self._pager.wait()


def _start_pager() -> subprocess.Popen[str] | None:
    """Start the pager of the user; return None if there is none."""
    command = shlex.split(os.environ.get("PAGER", "less"))
    if not command or command[0] == "cat" or shutil.which(command[0]) is None:
        return None
    variables = {"LESS": "FRX", **os.environ}
    try:
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, text=True, encoding=sys.stdout.encoding, env=variables,
            errors="backslashreplace",
        )  # fmt: skip
    except OSError:
        return None
