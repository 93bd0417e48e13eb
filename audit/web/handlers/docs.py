"""The OpenAPI document, and a page to read it and try the routes."""

from __future__ import annotations

from http import HTTPStatus
from importlib.resources import files
from typing import Final

from aiohttp import hdrs, web

from audit.web.responses import BytesResponse, json_response
from audit.web.state import OPENAPI

_FOLDER: Final = files("audit.web") / "static"
_PAGE: Final = (_FOLDER / "docs.html").read_bytes()
#: By name, so that no path from a request reaches the file system.
_ASSETS: Final = {
    "docs.js": ("text/javascript", (_FOLDER / "docs.js").read_bytes()),
    "swagger-ui-bundle.js": (
        "text/javascript",
        (_FOLDER / "swagger-ui" / "swagger-ui-bundle.js").read_bytes(),
    ),
    "swagger-ui.css": ("text/css", (_FOLDER / "swagger-ui" / "swagger-ui.css").read_bytes()),
}
_PAGE_HEADERS: Final = {
    "Content-Type": "text/html; charset=utf-8",
    "Cache-Control": "no-cache",
    # Swagger UI styles elements from its script and draws icons from data: URLs.
    "Content-Security-Policy": (
        "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_ASSET_HEADERS: Final = {
    "Cache-Control": "public, max-age=3600",
    "X-Content-Type-Options": "nosniff",
}


async def openapi_json(request: web.Request) -> BytesResponse:
    """Get this document."""
    response = json_response(request.app[OPENAPI]())
    response.headers["Cache-Control"] = "no-cache"
    return response


async def docs(request: web.Request) -> BytesResponse:
    """Get a page to read this document and try the routes."""
    return BytesResponse(_PAGE, _PAGE_HEADERS)


async def redirect_to_docs(request: web.Request) -> BytesResponse:
    """Redirect to the page by a relative path, so that a proxy can serve it under a prefix."""
    location = "docs" if request.path == "/" else "../docs"
    return BytesResponse(b"", {hdrs.LOCATION: location}, HTTPStatus.TEMPORARY_REDIRECT)


async def asset(request: web.Request) -> BytesResponse:
    """Get a script or a style sheet of the page."""
    found = _ASSETS.get(request.match_info["asset"])
    if found is None:
        raise web.HTTPNotFound
    content_type, body = found
    return BytesResponse(body, {**_ASSET_HEADERS, "Content-Type": f"{content_type}; charset=utf-8"})
