"""Decompresses request bodies, and refuses one that is cut off, altered or far too large."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import Final

from audit.errors import BodyTooLarge, Malformed, UnsupportedMedia
from audit.settings import Settings

CODINGS: Final = ("identity", "gzip", "deflate")
#: With small pieces, the decoder blocks other threads only shortly and needs little memory.
PIECE_BYTES: Final = 64 * 1024
#: Any body may expand to this size. Above it, `max_expansion` limits the ratio.
_ALWAYS_BYTES: Final = 1024 * 1024
#: A member may be empty, but takes more time than a piece of data.
_MOST_MEMBERS: Final = 10_000
_FIRST_PIECE_BYTES: Final = 512
_GZIP = 31
_ZLIB = zlib.MAX_WBITS
_RAW_DEFLATE = -zlib.MAX_WBITS
_METHOD_BITS = 0x0F
_METHOD_DEFLATE = 8


def coding_of(headers: Sequence[str]) -> str:
    """Return the coding from the Content-Encoding headers of a request.

    Raises:
        UnsupportedMedia: it is not one of `CODINGS`, or there are several.
    """
    given = ", ".join(headers) or "identity"
    coding = given.strip().lower()
    coding = "gzip" if coding == "x-gzip" else coding
    if coding not in CODINGS:
        raise UnsupportedMedia(
            f"the content encoding is {given}; send {' or '.join(CODINGS)}",
            headers={"Accept-Encoding": ", ".join(CODINGS)},
        )
    return coding


def decode(body: bytes, coding: str, settings: Settings) -> Iterator[bytes]:
    """Yield the decoded body in small pieces. It is complete only when the iterator ends.

    Raises:
        Malformed: the body is cut off, altered, or followed by other data.
        BodyTooLarge: it expands beyond a limit.
    """
    pieces = (body[at : at + PIECE_BYTES] for at in range(0, len(body), PIECE_BYTES))
    if coding == "identity":
        yield from pieces
        return
    most = max(_ALWAYS_BYTES, len(body) * settings.max_expansion)
    size = 0
    try:
        for piece in _inflate(body, coding):
            size += len(piece)
            if size > settings.max_body_bytes:
                raise too_large(settings)
            if size > most:
                raise BodyTooLarge(
                    f"the body expands to over {settings.max_expansion} times its size"
                    " (max_expansion)"
                )
            yield piece
    except zlib.error:
        raise Malformed(f"the body is not what its Content-Encoding says, {coding}") from None


def too_large(settings: Settings) -> BodyTooLarge:
    """Return the error for a body over the size limit, compressed or not."""
    return BodyTooLarge(
        f"the body is over {settings.max_body_bytes} bytes (max_body_bytes); send it in parts"
    )


def _inflate(body: bytes, coding: str) -> Iterator[bytes]:
    """Yield the data of a zlib stream, or of all members of a gzip stream (RFC 1952).

    zlib verifies the checksum and the size before it reports the end of a stream.
    """
    at = members = 0
    while at < len(body):
        if members and coding != "gzip":
            raise Malformed("data follows the end of the compressed body")
        if members == _MOST_MEMBERS:
            raise BodyTooLarge(f"the body has over {_MOST_MEMBERS} gzip members")
        members += 1
        decoder = zlib.decompressobj(_window_bits(body[at], coding))
        piece_bytes = _FIRST_PIECE_BYTES
        while not decoder.eof:
            fed = body[at : at + piece_bytes]
            piece = decoder.decompress(fed, PIECE_BYTES)
            at += len(fed) - len(decoder.unconsumed_tail) - len(decoder.unused_data)
            if not (fed or piece or decoder.eof):
                raise Malformed("the compressed body is cut off")
            yield piece
            piece_bytes = PIECE_BYTES


def _window_bits(first: int, coding: str) -> int:
    """Return the format for zlib. Some clients send `deflate` without the header of RFC 9110."""
    if coding == "gzip":
        return _GZIP
    return _ZLIB if first & _METHOD_BITS == _METHOD_DEFLATE else _RAW_DEFLATE
