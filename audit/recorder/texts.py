"""Texts that the recorder makes itself, in a form that the service accepts."""

from __future__ import annotations

import traceback
from typing import Final

_CUT: Final = "… (cut)"


def clean(text: str, longest: int) -> str:
    """Return text without the characters that JSON or PostgreSQL refuses, and cut if it is long.

    A message of an error may have half of a surrogate pair, from the name of a file that is not
    UTF-8.
    """
    text = text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")
    return text if len(text) <= longest else text[: max(0, longest - len(_CUT))] + _CUT


def error_text(error: BaseException, longest: int, *, with_traceback: bool) -> str:
    """Return the type and message of an error, as the last line of a traceback shows them."""
    if not isinstance(error, Exception):
        text = f"interrupted: {type(error).__name__}"
    else:
        try:
            message = str(error)
        except Exception:  # noqa: BLE001 - the error is what counts, not its text
            message = "(its text cannot be shown)"
        name = type(error).__name__
        text = f"{name}: {message}" if message else name
    if with_traceback:
        lines = traceback.format_exception(error)
        text = f"{text}\n\n{''.join(lines)}"
    return clean(text, longest)
