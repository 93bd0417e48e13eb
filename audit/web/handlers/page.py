"""The web page for people: one document, and the scripts and styles that it loads."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from http import HTTPStatus
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Final

from aiohttp import hdrs, web

from audit.web.handlers.docs import redirect_to_docs
from audit.web.negotiation import accepts_gzip, not_modified
from audit.web.responses import BytesResponse

_STATIC: Final = files("audit.web") / "static"
#: The folders that are served. All other files of a release stay private.
_FOLDERS: Final = ("page", "lit-html")
_TYPES: Final = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
#: What people see first.
_FIRST_VIEW: Final = "tasks?status=failed&last=7d"
_PAGE_HEADERS: Final = {
    hdrs.CONTENT_TYPE: "text/html; charset=utf-8",
    hdrs.CACHE_CONTROL: "no-cache",
    hdrs.VARY: "Accept-Encoding",
    # Trusted Types: text of a task can become HTML only through lit-html, which escapes it.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self';"
        " connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none';"
        " require-trusted-types-for 'script'; trusted-types lit-html"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
_ASSET_HEADERS: Final = {
    # The URL contains a digest of all assets, so it never has another body.
    hdrs.CACHE_CONTROL: "public, max-age=31536000, immutable",
    hdrs.VARY: "Accept-Encoding",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@dataclass(frozen=True)
class _File:
    body: bytes
    headers: dict[str, str]

    @cached_property
    def compressed(self) -> bytes:
        return gzip.compress(self.body, compresslevel=9, mtime=0)

    def response(self, request: web.Request) -> BytesResponse:
        if not accepts_gzip(request):
            return BytesResponse(self.body, self.headers)
        return BytesResponse(self.compressed, {**self.headers, hdrs.CONTENT_ENCODING: "gzip"})


def _assets(folder: Traversable, path: str) -> Iterator[tuple[str, _File]]:
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        name = f"{path}/{entry.name}"
        if entry.is_dir():
            yield from _assets(entry, name)
        elif content_type := _TYPES.get(name.rpartition(".")[2]):
            headers = {**_ASSET_HEADERS, hdrs.CONTENT_TYPE: f"{content_type}; charset=utf-8"}
            yield name, _File(entry.read_bytes(), headers)


#: Read at import and found by name, so that no path from a request reaches the file system.
_ASSETS: Final = {
    name: asset for folder in _FOLDERS for name, asset in _assets(_STATIC / folder, folder)
}


def _digest() -> str:
    digest = hashlib.sha256()
    for name, asset in _ASSETS.items():
        digest.update(f"{name} {len(asset.body)}\n".encode() + asset.body)
    return digest.hexdigest()[:16]


_DIGEST: Final = _digest()


def _document(root: str) -> _File:
    """Return the document for a URL from which `root` leads to the root of the service.

    All URLs in it are relative, so that a proxy can serve the page under a prefix.
    """
    text = (_STATIC / "page" / "index.html").read_text("utf-8")
    body = text.replace("{assets}", f"{root}assets/{_DIGEST}").replace("{root}", root).encode()
    etag = f'W/"{hashlib.sha256(body).hexdigest()[:16]}"'
    return _File(body, {**_PAGE_HEADERS, hdrs.ETAG: etag})


_LIST: Final = _document("")
_TASK: Final = _document("../")


async def redirect_to_page(request: web.Request) -> BytesResponse:
    """Redirect a browser to the recent failures, and other clients to the documentation."""
    if "text/html" in request.headers.get(hdrs.ACCEPT, ""):
        response = BytesResponse(b"", {hdrs.LOCATION: _FIRST_VIEW}, HTTPStatus.FOUND)
    else:
        response = await redirect_to_docs(request)
    response.headers[hdrs.CACHE_CONTROL] = "no-cache"
    response.headers[hdrs.VARY] = hdrs.ACCEPT
    return response


async def tasks_page(request: web.Request) -> BytesResponse:
    """Get the page with a list of tasks. Its parameters are those of the API's lists."""
    return _page(request, _LIST)


async def task_page(request: web.Request) -> BytesResponse:
    """Get the page of one task."""
    return _page(request, _TASK)


def _page(request: web.Request, document: _File) -> BytesResponse:
    unchanged = not_modified(request, document.headers[hdrs.ETAG], _PAGE_HEADERS)
    return unchanged or document.response(request)


async def page_asset(request: web.Request) -> BytesResponse:
    """Get a script, a style sheet or an image of the page."""
    asset = _ASSETS.get(request.match_info["file"])
    if asset is None or request.match_info["digest"] != _DIGEST:
        raise web.HTTPNotFound
    return asset.response(request)
