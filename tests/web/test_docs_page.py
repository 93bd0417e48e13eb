"""The page that shows the OpenAPI document works without any other host."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from html.parser import HTMLParser
from importlib.resources import files
from urllib.parse import urljoin

import pytest
from aiohttp import web
from pytest_aiohttp.plugin import AiohttpClient
from yarl import URL

from audit.web import openapi
from audit.web.handlers import docs
from audit.web.routes import ROUTES
from audit.web.state import OPENAPI
from tests.conftest import Client

STATIC = files("audit.web") / "static"
VENDORED = STATIC / "swagger-ui"


class References(HTMLParser):
    """What a page loads or leads to, and what it would run from its own text."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []
        self.inline: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.urls += [value for name, value in attrs if name in {"src", "href"} and value]
        self.inline += [name for name in given if name.startswith("on")]
        if tag == "script" and "src" not in given:
            self.inline.append(tag)


@pytest.fixture
async def docs_client(aiohttp_client: AiohttpClient) -> Client:
    """A client of the docs alone, without a database."""
    app = web.Application()
    render: Callable[[], bytes] = openapi.document_json
    app[OPENAPI] = render
    for route in ROUTES:
        if route.handler.__module__ == docs.__name__:
            app.router.add_route(route.method, route.path, route.handler)
    return await aiohttp_client(app)


async def test_openapi_json_is_the_document(docs_client: Client) -> None:
    response = await docs_client.get("/openapi.json")

    assert response.status == 200
    assert response.content_type == "application/json"
    assert response.headers["Cache-Control"] == "no-cache"
    assert await response.json() == openapi.document()


async def test_page_runs_only_scripts_of_this_origin(docs_client: Client) -> None:
    response = await docs_client.get("/docs")
    policy = dict(
        directive.strip().split(" ", 1)
        for directive in response.headers["Content-Security-Policy"].split(";")
    )

    assert response.status == 200
    assert response.headers["Content-Type"] == "text/html; charset=utf-8"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert policy == {
        "default-src": "'self'",
        "style-src": "'self' 'unsafe-inline'",
        "img-src": "'self' data:",
        "object-src": "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    page = References()
    page.feed(await response.text())
    assert page.inline == []


async def test_page_refers_to_nothing_but_what_is_served_here(docs_client: Client) -> None:
    page = References()
    page.feed(await (await docs_client.get("/docs")).text())
    served = {}
    for url in page.urls:
        if not url.startswith("data:"):
            assert not re.match(r"[a-z]+:|//", url)
            response = await docs_client.get(urljoin("/docs", url))
            assert response.status == 200
            served[urljoin("/docs", url)] = response.headers["Content-Type"]

    assert served == {
        "/docs/swagger-ui.css": "text/css; charset=utf-8",
        "/docs/swagger-ui-bundle.js": "text/javascript; charset=utf-8",
        "/docs/docs.js": "text/javascript; charset=utf-8",
        "/openapi.json": "application/json",
    }


async def test_scripts_and_styles_are_kept_and_not_guessed_at(docs_client: Client) -> None:
    for name in ("docs.js", "swagger-ui-bundle.js", "swagger-ui.css"):
        response = await docs_client.get(f"/docs/{name}")

        assert response.headers["Cache-Control"] == "public, max-age=3600"
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        folder = STATIC if name == "docs.js" else VENDORED
        assert await response.read() == (folder / name).read_bytes()


def test_our_script_and_the_styles_name_no_other_host() -> None:
    script = (STATIC / "docs.js").read_text(encoding="utf-8")
    style = (VENDORED / "swagger-ui.css").read_text(encoding="utf-8")

    assert 'url: "openapi.json"' in script
    assert "validatorUrl: null" in script
    assert "//" not in re.sub(r"^\s*//.*$", "", script, flags=re.MULTILINE)
    assert "@import" not in style
    assert [url[:5] for url in re.findall(r"url\([\"']?([^)]*)", style) if url[:5] != "data:"] == []


@pytest.mark.parametrize(
    "path",
    [
        "/docs/README.md",
        "/docs/docs.html",
        "/docs/swagger-ui",
        "/docs/swagger-ui%2Fswagger-ui.css",
        "/docs/..%2Fdocs.html",
        "/docs/%2e%2e%2f%2e%2e%2fopenapi.py",
        "/docs/swagger-ui.css%00",
    ],
)
async def test_nothing_else_is_served_from_the_folder(docs_client: Client, path: str) -> None:
    response = await docs_client.get(URL(path, encoded=True))

    assert response.status == 404


def test_swagger_ui_is_what_its_readme_says() -> None:
    readme = (VENDORED / "README.md").read_text(encoding="utf-8")
    said = dict(re.findall(r"^\| `([^`]+)` \| `([0-9a-f]{64})` \|$", readme, re.MULTILINE))
    shipped = {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in VENDORED.iterdir()
        if file.name != "README.md"
    }

    assert said == shipped
    assert len(shipped) == 5
