"""Turns every failure into `application/problem+json` (RFC 9457) with the id of the request."""

from __future__ import annotations

import json
import logging
import random
import re
from http import HTTPStatus
from typing import Any, Final

from aiohttp import hdrs, web
from aiohttp.http_exceptions import BadHttpMessage, LineTooLong
from multidict import istr

from audit import errors
from audit.deadlines import DeadlineExceeded
from audit.errors import Problem, TimedOut
from audit.web.responses import BytesResponse
from audit.web.state import ACCEPT_PATCH, REASON

log = logging.getLogger("audit")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._~-]{1,128}", re.ASCII)
#: Limit of the path and the parameters of a request.
MAX_URL_BYTES: Final = 64 * 1024
#: Limit of the name and of the value of one header field. aiohttp raises the same error for a long
#: URL and a long field, so this must differ from MAX_URL_BYTES.
MAX_HEADER_BYTES: Final = 32 * 1024
MAX_HEADERS: Final = 128
_REQUEST_ID_HEADER: Final = istr("X-Request-ID")
_HEADERS: Final[dict[str, str]] = {
    hdrs.CONTENT_TYPE: "application/problem+json",
    # Whether a request fails depends on who sends it.
    hdrs.VARY: "Authorization, Cookie",
}
_encode = json.JSONEncoder(ensure_ascii=False).encode


def problem_response(
    request: web.Request, failure: Exception, request_id: str
) -> web.StreamResponse:
    """Return the response to a request whose handler has raised `failure`."""
    match failure:
        case DeadlineExceeded():
            late = TimedOut(f"the request took over {failure.seconds:g} seconds")
            return _respond(late, request_id)
        case Problem():
            request[REASON] = failure.detail
            return _respond(failure, request_id)
        case web.HTTPMethodNotAllowed():
            return _options(failure, request, request_id)
        case web.HTTPException():
            is_unknown = failure.status == HTTPStatus.NOT_FOUND
            detail = f"there is no route {request.path}" if is_unknown else None
            return _respond_plainly(failure.status, request_id, detail)
    log.error(
        *("request %s failed: %s %s", request_id, request.method, request.path), exc_info=failure
    )
    return _respond(
        Problem(f"unexpected error; the log has the details under {request_id}"), request_id
    )


def add_common_headers(response: web.StreamResponse, request_id: str) -> web.StreamResponse:
    """Add the headers of every response. Without `Server`, aiohttp would add its version."""
    headers = response.headers
    headers[_REQUEST_ID_HEADER] = request_id
    headers[hdrs.SERVER] = "task-audit"
    return response


def bytes_of(problem: Problem) -> bytes:
    """Return the bytes of a response with a problem that closes its connection."""
    request_id = _new_id()
    response = _respond(problem, request_id)
    add_common_headers(response, request_id)
    return response.to_bytes()


def request_id_of(request: web.BaseRequest) -> str:
    """Return the id that the client sent, if it can be used in a header and a log, or a new id."""
    given = request.headers.get(_REQUEST_ID_HEADER)
    return given if given and _REQUEST_ID.fullmatch(given) else _new_id()


def _new_id() -> str:
    """Return a new id. It is no secret, and `secrets` would take longer."""
    return f"{random.getrandbits(128):032x}"


def _respond(problem: Problem, request_id: str) -> BytesResponse:
    is_expected = problem.status < HTTPStatus.INTERNAL_SERVER_ERROR or isinstance(
        problem, errors.ReadOnly
    )
    if problem.__cause__ is not None and not is_expected:
        log.warning("request %s: %s (%r)", request_id, problem.detail, problem.__cause__)
    response = _response(problem.document(request_id))
    response.headers.update(problem.headers)
    if problem.retry_after_seconds is not None:
        response.headers["Retry-After"] = str(problem.retry_after_seconds)
    return response


def _respond_plainly(status: int, request_id: str, detail: str | None = None) -> BytesResponse:
    """Return a problem without a type of its own, because the status says what it is."""
    title = HTTPStatus(status).phrase
    return _response(
        {
            "type": "about:blank",
            "title": title,
            "status": status,
            "detail": detail or title,
            "instance": request_id,
        }
    )


def _response(members: dict[str, Any]) -> BytesResponse:
    body = _encode(members).encode("utf-8", "replace")
    return BytesResponse(body, _HEADERS, members["status"])


def _options(
    refused: web.HTTPMethodNotAllowed, request: web.Request, request_id: str
) -> BytesResponse:
    """Answer OPTIONS, for which there are no handlers, and refuse all other methods."""
    if request.method == hdrs.METH_OPTIONS:
        response = BytesResponse(None, {}, HTTPStatus.NO_CONTENT)
        if hdrs.METH_PATCH in refused.allowed_methods:
            response.headers["Accept-Patch"] = ACCEPT_PATCH
    else:
        detail = f"{request.path} does not support {request.method}"
        response = _respond_plainly(refused.status, request_id, detail)
    response.headers[hdrs.ALLOW] = ", ".join(sorted({*refused.allowed_methods, hdrs.METH_OPTIONS}))
    return response


def refuse_expectation(request: web.BaseRequest) -> web.StreamResponse:
    """Answer a request whose `Expect` header asks for something else than `100-continue`.

    aiohttp refuses it before any middleware runs, with an answer that repeats the header.
    """
    request_id = request_id_of(request)
    response = _respond_plainly(HTTPStatus.EXPECTATION_FAILED, request_id)
    return add_common_headers(response, request_id)


def refuse_unreadable(
    request: web.BaseRequest, status: int, failure: BaseException | None
) -> web.StreamResponse:
    """Answer a request that aiohttp cannot parse, and close its connection.

    No middleware sees such a request. The answer of aiohttp would repeat the input and name the
    version of aiohttp.
    """
    if request.writer.output_size > 0:
        raise ConnectionError("part of the response has already been sent")
    request_id = _new_id()
    if status < HTTPStatus.INTERNAL_SERVER_ERROR:
        log.debug("unreadable request %s from %s: %r", request_id, request.remote, failure)
        response = _respond(_of_parser(failure), request_id)
    else:
        log.error("request %s failed outside of its handler", request_id, exc_info=failure)
        response = _respond_plainly(status, request_id)
    response.force_close()
    return add_common_headers(response, request_id)


def _of_parser(refused: BaseException | None) -> Problem:
    """Return the problem for an exception of aiohttp's parser."""
    match refused:
        case LineTooLong(args=(_, limit, *_)) if limit == MAX_URL_BYTES:
            return errors.UrlTooLong(f"the URL is over {MAX_URL_BYTES} bytes")
        case LineTooLong():
            return errors.HeadersTooLarge(f"a header field is over {MAX_HEADER_BYTES} bytes")
        case BadHttpMessage(message="Too many headers received"):
            return errors.HeadersTooLarge(f"the request has over {MAX_HEADERS} header fields")
    return errors.Malformed("not a valid HTTP request")
