"""Writes Python values as JSON text, and refuses those that JSON does not have."""

from __future__ import annotations

import json
import math
from typing import Any, Final

from audit.errors import Invalid
from audit.history.json_text import Path, Reader, name_of
from audit.history.validation import invalid

_encode: Final = json.JSONEncoder(allow_nan=False, ensure_ascii=False).encode


def write(value: Any, reader: Reader, label: str = "") -> tuple[str, Any]:
    """Return the JSON text of a Python value, and the value that `reader` reads from it.

    The two values are equal, except that a tuple becomes a list.

    Raises:
        Malformed: a text contains a NUL character or half of a surrogate pair.
        Invalid: it is over a limit, or contains what JSON does not have, such as NaN or bytes.
    """
    try:
        text = _encode(value)
        read = reader.read(text, label)
    except (Invalid, TypeError, ValueError, RecursionError) as error:
        _check(value, reader, label)  # its error has the path to the value
        if isinstance(error, Invalid):
            raise
        raise invalid(label, str(error)) from None
    if read != value:
        _check(value, reader, label)
    return text, read


def _check(value: Any, reader: Reader, label: str) -> None:
    """Raise Invalid for the first value that JSON does not have, with the path to it."""
    level: list[tuple[Path, Any]] = [(None, value)]
    for _ in range(reader.max_nesting + 1):
        inner: list[tuple[Path, Any]] = []
        for path, each in level:
            if problem := _problem(each, reader.max_digits):
                raise invalid(label, problem, name_of(path))
            if isinstance(each, dict):
                inner.extend(((path, name), member) for name, member in each.items())
            elif isinstance(each, list | tuple):
                inner.extend(((path, index), member) for index, member in enumerate(each))
        level = inner
    if level:
        raise reader.too_deep(label)


def _problem(value: Any, max_digits: int) -> str:
    """Return why JSON does not have this value, or an empty text. Its members are not checked."""
    if value is None or isinstance(value, str | bool | list | tuple):
        return ""
    if isinstance(value, dict):
        others = (type(name).__name__ for name in value if not isinstance(name, str))
        other = next(others, None)
        return f"has a member whose name is {other}, not text" if other else ""
    if isinstance(value, float):
        return "" if math.isfinite(value) else f"{value} is not a JSON value"
    if isinstance(value, int):
        is_short = value.bit_length() <= max_digits * 4 and abs(value) < 10**max_digits
        return "" if is_short else f"has over {max_digits} digits (max_number_digits)"
    return f"{type(value).__name__} is not a JSON value"
