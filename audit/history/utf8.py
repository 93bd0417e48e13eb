"""Decodes UTF-8 that arrives in pieces, as one text or line by line."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from typing import Final

from audit.errors import Malformed
from audit.history.json_text import SPACE
from audit.history.validation import with_label

_SPACE: Final = SPACE.encode()
_UTF16: Final = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def texts(pieces: Iterable[bytes]) -> Iterator[str]:
    """Decode each piece. A character may be split between two of them.

    Raises:
        Malformed: it is not UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for piece in without_mark(pieces):
            yield decoder.decode(piece)
        yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise _not_utf8(error, "") from None


def lines(pieces: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield each line with its number, from 1, and without the white space around it."""
    number = 1
    begun: list[bytes] = []
    for piece in without_mark(pieces):
        first, *others = piece.split(b"\n")
        begun.append(first)
        for other in others:
            yield number, b"".join(begun).strip(_SPACE)
            number += 1
            begun = [other]
    yield number, b"".join(begun).strip(_SPACE)


def line_text(line: bytes, label: str) -> str:
    """Decode a line.

    Raises:
        Malformed: it is not UTF-8.
    """
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise _not_utf8(error, label) from None


def without_mark(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Drop the byte order mark of UTF-8 at the start, if there is one.

    Raises:
        Malformed: it is UTF-16.
    """
    rest = iter(pieces)
    start = b""
    for piece in rest:
        start += piece
        if len(start) >= len(codecs.BOM_UTF8):
            break
    if start.startswith(_UTF16) or b"\0" in start[:2]:
        raise Malformed("this is UTF-16, or another encoding with NUL bytes; send UTF-8")
    yield start.removeprefix(codecs.BOM_UTF8)
    yield from rest


def _not_utf8(error: UnicodeDecodeError, label: str) -> Malformed:
    byte = error.object[error.start]
    return Malformed(with_label(label, f"not UTF-8: byte 0x{byte:02x} is out of place"))
