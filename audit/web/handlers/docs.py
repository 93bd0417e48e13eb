"""The OpenAPI document, and a page to read and try it."""

from __future__ import annotations

from http import HTTPStatus
from importlib.resources import files
from typing import Final

from aiohttp import hdrs, web

from audit.web import openapi
from audit.web.responses import BytesResponse, json_response

_FOLDER: Final = files("audit.web") / "static"
_PAGE: Final = (_FOLDER / "docs.html").read_bytes()
# By name, so that no path of a request ever reaches the file system.
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


def add_routes(app: web.Application) -> None:
    """Serve `/openapi.json`, and `/docs` with what the page is made of."""
    app.router.add_get("/openapi.json", openapi_json)
    app.router.add_get("/docs", page)
    app.router.add_get("/docs/", to_page)
    app.router.add_get("/", to_page)
    app.router.add_get("/docs/{asset}", asset)


async def openapi_json(request: web.Request) -> BytesResponse:
    """The OpenAPI 3.1 document."""
    response = json_response(openapi.document_json())
    response.headers["Cache-Control"] = "no-cache"
    return response


async def page(request: web.Request) -> BytesResponse:
    """The page, which asks this service for all it needs and no other host for anything."""
    return BytesResponse(_PAGE, _PAGE_HEADERS)


async def to_page(request: web.Request) -> BytesResponse:
    """Lead to the page, by a relative path: a proxy may serve all of it under a prefix."""
    place = "docs" if request.path == "/" else "../docs"
    return BytesResponse(b"", {hdrs.LOCATION: place}, HTTPStatus.TEMPORARY_REDIRECT)


async def asset(request: web.Request) -> BytesResponse:
    """A script or style sheet of the page."""
    found = _ASSETS.get(request.match_info["asset"])
    if found is None:
        raise web.HTTPNotFound
    content_type, body = found
    return BytesResponse(body, {**_ASSET_HEADERS, "Content-Type": f"{content_type}; charset=utf-8"})
