"""The URL of a request: its query parameters, the last segment of its path, and links to pages."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import parse_qsl, quote, unquote_to_bytes, urlencode

from aiohttp import web

from audit.errors import Malformed

#: Proxies commonly limit the headers of a response to 4 KiB in total.
_LONGEST_LINKS: Final = 3000
#: The part of a URL that can be repeated in a link without encoding it again.
_PLAIN_URL: Final = re.compile(r"[A-Za-z0-9&=._~+:/-]*", re.ASCII)
_BROKEN_PERCENT: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")


def query_params(request: web.Request) -> dict[str, list[str]]:
    """Return the parameters of the URL, each with all its values.

    Raises:
        Malformed: a percent-encoding is broken, is not UTF-8 or holds a NUL character.
    """
    _, _, query = request.raw_path.partition("?")
    params: dict[str, list[str]] = {}
    for name, value in parse_qsl(_checked(query), keep_blank_values=True):
        params.setdefault(name, []).append(value)
    return params


def path_and_query_params(
    request: web.Request, name: str, *, after: str = ""
) -> dict[str, list[str]]:
    """Return the parameters of the URL, with the last segment of the path as the one of `name`.

    If the path ends with `after`, it is the last segment before that.
    """
    params = query_params(request)
    params[name] = [_last_segment(request, after), *params.get(name, [])]
    return params


def links(request: web.Request, next_cursor: str | None) -> str | None:
    """Return a `Link` header to the first page and the next one; None if it would be too long.

    The links are relative (RFC 8288), because a proxy may serve the service under another name,
    scheme or prefix.
    """
    path, _, query = request.raw_path.partition("?")
    page = "./" + path.rpartition("/")[2]
    is_first = "cursor=" not in query and "offset=" not in query
    if not (is_first and _PLAIN_URL.fullmatch(page + query)):
        page = "./" + quote(_last_segment(request), safe="")
        filters = [
            (name, value)
            for name, values in query_params(request).items()
            for value in values
            if name not in ("cursor", "offset")
        ]
        query = urlencode(filters)
    header = f'<{page}?{query}>; rel="first"' if query else f'<{page}>; rel="first"'
    if next_cursor is not None:
        joined = f"{query}&" if query else ""
        header += f', <{page}?{joined}cursor={next_cursor}>; rel="next"'
    return header if len(header) <= _LONGEST_LINKS else None


def _last_segment(request: web.Request, after: str = "") -> str:
    path, _, _ = request.raw_path.partition("?")
    path = path.removesuffix(after)
    return unquote_to_bytes(_checked(path.rpartition("/")[2])).decode()


def _checked(text: str) -> str:
    """Return a part of the URL if its percent-encoding is correct."""
    decoded = unquote_to_bytes(text.encode("utf-8", "surrogateescape"))
    try:
        decoded.decode()
    except UnicodeDecodeError:
        raise Malformed("the URL holds a percent-encoding that is not UTF-8") from None
    if _BROKEN_PERCENT.search(text):
        raise Malformed("the URL has a % that is not followed by two hexadecimal digits")
    if b"\0" in decoded:
        raise Malformed("the URL holds a NUL character")
    return text
