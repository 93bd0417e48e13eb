"""The page for people is served whole, from this origin alone, and browsers keep its parts."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import tarfile
from importlib.resources import files
from pathlib import Path
from urllib.parse import urljoin

import pytest
from yarl import URL

from tests.conftest import Client
from tests.needs import needs

STATIC = Path(str(files("audit.web") / "static"))
LIT_HTML = STATIC / "lit-html"
SERVED = sorted(
    file.relative_to(STATIC).as_posix()
    for folder in ("page", "lit-html")
    for file in (STATIC / folder).rglob("*")
    if file.suffix in {".js", ".css", ".svg"}
)
TASK = "/tasks/0192f3a4-7b1c-7def-8a90-0123456789ab"
IMPORT = re.compile(r"""(?<!["'])\b(?:from|import)\s*["']([^"']+)["']""")
#: What a module loads when it is needed first.
LATER = re.compile(r"""\b(?:import|new URL)\("([^"]+\.(?:js|css))\"""")


async def assets_of(client: Client) -> str:
    """The folder of the assets that the page names."""
    text = await (await client.get("/tasks")).text()
    (digest,) = set(re.findall(r'"assets/([0-9a-f]{16})/', text))
    return f"/assets/{digest}"


# --- the document ---------------------------------------------------------------------------------


@pytest.mark.parametrize("accept", ["text/html", "text/html,application/xml;q=0.9,*/*;q=0.8"])
async def test_root_leads_browsers_to_the_recent_failures(client: Client, accept: str) -> None:
    response = await client.get("/", headers={"Accept": accept}, allow_redirects=False)
    page = await client.get("/", headers={"Accept": accept})

    assert response.status == 302
    assert response.headers["Location"] == "tasks?status=failed&last=7d"
    assert response.headers["Vary"] == "Accept"
    assert page.url.path_qs == "/tasks?status=failed&last=7d"
    assert page.content_type == "text/html"


@pytest.mark.parametrize("accept", [None, "*/*", "application/json"])
async def test_root_leads_other_clients_to_the_documentation(
    client: Client, accept: str | None
) -> None:
    headers = {} if accept is None else {"Accept": accept}
    response = await client.get(
        "/", headers=headers, skip_auto_headers=["Accept"], allow_redirects=False
    )

    assert response.status == 307
    assert response.headers["Location"] == "docs"
    assert response.headers["Vary"] == "Accept"


@pytest.mark.parametrize("path", ["/tasks", "/tasks?status=failed&tz=Asia/Kathmandu", TASK])
async def test_page_allows_nothing_but_what_is_served_here(client: Client, path: str) -> None:
    response = await client.get(path)
    policy = dict(
        directive.strip().split(" ", 1)
        for directive in response.headers["Content-Security-Policy"].split(";")
    )

    assert response.status == 200
    assert response.headers["Content-Type"] == "text/html; charset=utf-8"
    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self'",
        "connect-src": "'self'",
        "form-action": "'none'",
        "base-uri": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "lit-html",
    }
    assert response.headers["Referrer-Policy"] == "no-referrer"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert response.headers["Permissions-Policy"] == "camera=(), geolocation=(), microphone=()"


@pytest.mark.parametrize("path", ["/tasks", TASK])
async def test_all_urls_of_the_page_are_relative_and_served(client: Client, path: str) -> None:
    text = await (await client.get(path)).text()
    urls = re.findall(r'\b(?:src|href)="([^"]*)"', text)

    assert any(url.endswith("/page/main.js") for url in urls)
    for url in urls:
        assert not re.match(r"[a-z]+:|/", url), url
        assert (await client.get(urljoin(path, url))).status == 200, url
    assert "{" not in text
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son[a-z]+=", text)


@pytest.mark.parametrize("path", ["/tasks", TASK])
async def test_an_unchanged_page_is_not_sent_again(client: Client, path: str) -> None:
    first = await client.get(path)
    again = await client.get(path, headers={"If-None-Match": first.headers["ETag"]})
    other = await client.get(path, headers={"If-None-Match": '"other"'})

    assert first.headers["Cache-Control"] == "no-cache"
    assert (again.status, await again.read()) == (304, b"")
    assert again.headers["ETag"] == first.headers["ETag"]
    assert other.status == 200


async def test_the_page_of_a_task_and_the_list_have_different_etags(client: Client) -> None:
    tags = {(await client.get(path)).headers["ETag"] for path in ("/tasks", TASK)}

    assert len(tags) == 2


async def test_the_document_preloads_every_module_that_it_imports(client: Client) -> None:
    text = await (await client.get("/tasks")).text()
    preloaded = set(re.findall(r'rel="modulepreload" href="assets/[0-9a-f]{16}/([^"]+)"', text))
    imported, found = set(), {"page/main.js"}
    while found:
        module = found.pop()
        imported.add(module)
        names = IMPORT.findall((STATIC / module).read_text("utf-8"))
        found |= {urljoin(module, name) for name in names} - imported

    assert imported - preloaded == {"page/main.js"}
    assert preloaded <= set(SERVED)


# --- its scripts and styles -----------------------------------------------------------------------


@pytest.mark.parametrize("coding", ["gzip", "identity"])
async def test_assets_are_what_lies_in_the_folders(client: Client, coding: str) -> None:
    folder = await assets_of(client)
    types = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
    for name in SERVED:
        response = await client.get(f"{folder}/{name}", headers={"Accept-Encoding": coding})

        assert response.status == 200
        assert await response.read() == (STATIC / name).read_bytes()
        assert response.headers.get("Content-Encoding", "identity") == coding
        assert response.content_type == types[name.rpartition(".")[2]]
        assert response.charset == "utf-8"
        assert response.headers["Cache-Control"] == "public, max-age=31536000, immutable"
        assert response.headers["Vary"] == "Accept-Encoding"
        assert response.headers["X-Content-Type-Options"] == "nosniff"


async def test_head_of_an_asset_has_the_length_of_its_body(client: Client) -> None:
    url = f"{await assets_of(client)}/page/main.js"
    headers = {"Accept-Encoding": "identity"}
    head = await client.head(url, headers=headers)

    assert head.headers["Content-Length"] == str((STATIC / "page/main.js").stat().st_size)
    assert await head.read() == b""


@pytest.mark.parametrize("name", [name for name in SERVED if name.endswith(".js")])
def test_a_module_imports_only_modules_that_are_served(name: str) -> None:
    text = (STATIC / name).read_text("utf-8")
    for imported in IMPORT.findall(text) + LATER.findall(text):
        assert imported.startswith("."), imported
        assert urljoin(name, imported) in SERVED, imported


async def test_assets_of_another_version_are_not_served(client: Client) -> None:
    folder = await assets_of(client)

    assert (await client.get(f"{folder}/page/main.js")).status == 200
    assert (await client.get("/assets/0123456789abcdef/page/main.js")).status == 404


@pytest.mark.parametrize(
    "path",
    [
        "page/index.html",
        "lit-html/README.md",
        "lit-html/LICENSE",
        "lit-html",
        "page/",
        "docs.js",
        "swagger-ui/swagger-ui.css",
        "../docs.js",
        "page/../../docs.js",
        "page%2F..%2F..%2Fdocs.js",
        "page/%2e%2e/%2e%2e/openapi.py",
        "page//main.js",
        "page/main.js%00",
        "%2fetc/passwd",
    ],
)
async def test_nothing_else_is_served_from_the_folders(client: Client, path: str) -> None:
    response = await client.get(URL(f"{await assets_of(client)}/{path}", encoded=True))

    assert response.status == 404
    assert response.content_type == "application/problem+json"


# --- lit-html -------------------------------------------------------------------------------------


def said_of_lit_html() -> tuple[str, dict[str, str]]:
    readme = (LIT_HTML / "README.md").read_text(encoding="utf-8")
    version = readme.splitlines()[0].rpartition(" ")[2]
    sums = re.findall(r"^\| `([^`]+)` \| `([0-9a-f]{64})` \|$", readme, re.MULTILINE)
    return version, dict(sums)


def test_lit_html_is_what_its_readme_says() -> None:
    shipped = {
        file.relative_to(LIT_HTML).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in LIT_HTML.rglob("*")
        if file.is_file() and file.name != "README.md"
    }

    assert said_of_lit_html()[1] == shipped
    assert len(shipped) == 5


def test_lit_html_is_the_package_as_published(tmp_path: Path) -> None:
    version, sums = said_of_lit_html()
    packed = subprocess.run(
        [needs("npm"), "pack", "--json", f"lit-html@{version}"],
        cwd=tmp_path, check=True, capture_output=True,
    )  # fmt: skip
    with tarfile.open(tmp_path / json.loads(packed.stdout)[0]["filename"]) as package:
        for name, digest in sums.items():
            file = package.extractfile(f"package/{name}")
            assert file, name
            assert hashlib.sha256(file.read()).hexdigest() == digest, name
