"""Conditional requests and content codings: entity tags, 304, and gzip (RFC 9110)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

from aiohttp import hdrs, web

from audit.errors import PreconditionFailed
from audit.web.responses import BytesResponse

_TAG: Final = re.compile(r'(W/)?("[^"]*")')
_WEIGHT: Final = re.compile(r"\s*q=([01](?:\.\d{0,3})?)\s*", re.ASCII)


def not_modified(
    request: web.Request, etag: str, headers: Mapping[str, str]
) -> BytesResponse | None:
    """Return a 304 response if the client holds the response with this ETag; otherwise None."""
    held = ",".join(request.headers.getall(hdrs.IF_NONE_MATCH, ()))
    # The quotes around a tag are part of it, and no tag contains one.
    if etag.removeprefix("W/") not in held and held.strip() != "*":
        return None
    return BytesResponse(None, {**headers, hdrs.ETAG: etag}, 304)


def require_match(request: web.Request, etag: str) -> None:
    """Raise PreconditionFailed if the request has an `If-Match` without this ETag."""
    match = match_tags(request)
    if match is not None and not _has(match, etag):
        raise PreconditionFailed(f"the task's ETag is {etag}")


def match_tags(request: web.Request) -> list[str] | None:
    """Return the strong tags of `If-Match`; None if the request has no such header."""
    given = request.headers.getall(hdrs.IF_MATCH, None)
    return None if given is None else _tags(given, strong=True)


def none_match_tags(request: web.Request) -> list[str] | None:
    """Return the tags of `If-None-Match`; None if the request has no such header."""
    given = request.headers.getall(hdrs.IF_NONE_MATCH, None)
    return None if given is None else _tags(given)


def _has(tags: list[str], etag: str) -> bool:
    return "*" in tags or etag in tags


def _tags(given: list[str], *, strong: bool = False) -> list[str]:
    """Return the entity tags of a header without their `W/`; with `strong`, only strong ones."""
    listed = ",".join(given)
    if listed.strip() == "*":
        return ["*"]
    return [tag for weak, tag in _TAG.findall(listed) if not (strong and weak)]


def accepts_gzip(request: web.Request) -> bool:
    """Return whether the client accepts gzip: by name, or otherwise by `*` (RFC 9110, 12.5.3)."""
    return _allows_gzip(request.headers.get(hdrs.ACCEPT_ENCODING, ""))


@lru_cache(maxsize=256)
def _allows_gzip(accepted: str) -> bool:
    weights: dict[str, float] = {}
    for member in accepted.lower().split(","):
        coding, _, weight = member.partition(";")
        found = _WEIGHT.fullmatch(weight)
        weights[coding.strip()] = float(found[1]) if found else 1
    return weights.get("gzip", weights.get("x-gzip", weights.get("*", 0))) > 0
