"""Bars of text."""

from __future__ import annotations

from typing import Final

from audit.commands.rendering.screen import Look

#: What the eighths of a cell look like, from one to seven.
_EIGHTHS: Final = "▏▎▍▌▋▊▉"
_FULL: Final = "█"


def bar(value: int, most: int, width: int, look: Look) -> str:
    """Return a bar in proportion to `most`, which takes the whole width.

    Only zero has no bar: a small value has the smallest one.
    """
    if value <= 0 or most <= 0:
        return ""
    if look.is_ascii:
        return "#" * max(1, round(value / most * width))
    whole, eighths = divmod(max(1, round(value / most * width * 8)), 8)
    return _FULL * whole + (_EIGHTHS[eighths - 1] if eighths else "")
