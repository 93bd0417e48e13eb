"""Takes JSON arrays of the service apart, without changing a character of their elements."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

#: Numbers stay text: some have more digits than Python converts.
_DECODER: Final = json.JSONDecoder(parse_int=str, parse_float=str)

#: The member of an element under which its own JSON text is kept.
TEXT: Final = "\0text"


def parsed(text: str) -> Any:
    """Return the value of a JSON text. Its numbers are text."""
    return _DECODER.decode(text)


def elements(array: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the text and the value of each element of a JSON array of objects.

    The value has its own text as the member `TEXT`.
    """
    at = array.find("{")
    while at >= 0:
        value, end = _DECODER.raw_decode(array, at)
        text = value[TEXT] = array[at:end]
        yield text, value
        at = array.find("{", end)
