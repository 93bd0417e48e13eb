"""The session of the web page: a cookie that holds an API key which can only read."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Annotated, Final

from aiohttp import hdrs, web
from pydantic import StringConstraints

from audit.errors import Forbidden
from audit.history import utf8
from audit.history.json_text import SPACE, Reader
from audit.history.query import NoParams, parse_query
from audit.history.validation import ErrorList, Input
from audit.settings import Settings
from audit.web.bodies import content_type_of, decode_and_parse, receive
from audit.web.guard import COOKIE, FETCH_SITE, GUARD
from audit.web.responses import BytesResponse
from audit.web.state import BODY_MEMORY, SETTINGS
from audit.web.urls import query_params

#: Browsers drop a cookie over 4,096 bytes without a word.
_LONGEST_KEY: Final = 4000
#: Without `Max-Age`, the cookie ends with the browser.
_ATTRIBUTES: Final = "HttpOnly; Secure; SameSite=Strict; Path=/"


class NewSession(Input):
    """What opens a session."""

    key: Annotated[
        str,
        StringConstraints(strict=True, max_length=_LONGEST_KEY, pattern=r"^[A-Za-z0-9._~+/-]+=*$"),
    ]
    """An API key or a JSON Web Token with the scope `read` and no other."""


async def open_session(request: web.Request) -> BytesResponse:
    """Open a session of the web page.

    Only the page itself can do so. Its browser then sends the key in a cookie that no script can
    read. The cookie is accepted instead of `Authorization` when the page reads.
    """
    _require_page(request)
    parse_query(NoParams, query_params(request))
    content_type_of(request, ("application/json",))
    with request.app[BODY_MEMORY].request() as reserve:
        body = await receive(request, reserve)
        parse = partial(_parse, settings=request.app[SETTINGS])
        session = await decode_and_parse(request, body, parse)
    rate_headers = await request.app[GUARD].admit_to_session(request, session.key)
    response = _response(f"{COOKIE}={session.key}; {_ATTRIBUTES}")
    response.headers.update(rate_headers)
    return response


async def close_session(request: web.Request) -> BytesResponse:
    """Close the session of the web page.

    Only the page itself can do so. The key stays valid: to end it, revoke it.
    """
    _require_page(request)
    parse_query(NoParams, query_params(request))
    return _response(f"{COOKIE}=; Max-Age=0; {_ATTRIBUTES}")


def _require_page(request: web.Request) -> None:
    """Refuse requests that other pages make a browser send, and those of other programs."""
    site = request.headers.get(FETCH_SITE)
    if site is None:
        raise Forbidden(
            "sessions are for the web page of this service, and the request lacks the header"
            f" {FETCH_SITE}; browsers send it to https and to localhost only, so open the page"
            " there; other programs send an API key: Authorization: Bearer …"
        )
    if site != "same-origin":
        raise Forbidden("only the web page of this service can open or close its session")


def _parse(body: Iterable[bytes], settings: Settings) -> NewSession:
    value = Reader(settings).read("".join(utf8.texts(body)).strip(SPACE))
    errors = ErrorList(settings)
    session = errors.validate(NewSession, value)
    if session is None:
        raise errors.problem()
    return session


def _response(cookie: str) -> BytesResponse:
    headers: dict[str, str] = {hdrs.SET_COOKIE: cookie, hdrs.CACHE_CONTROL: "no-store"}
    return BytesResponse(None, headers, 204)
