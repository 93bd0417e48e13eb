"""The samples in docs/deploy: the real nginx before the real service, and the unit for systemd."""

from __future__ import annotations

import contextlib
import json
import os
import re
import ssl
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import Any

import pytest

from audit.settings import Settings
from audit.web.problems import MAX_HEADER_BYTES, MAX_URL_BYTES
from tests.conftest import task
from tests.needs import needs
from tests.processes import AUDIT, accepts, free_port, serving
from tests.waiting import wait_until

DEPLOY = Path(__file__).parents[2] / "docs/deploy"
NGINX = (DEPLOY / "nginx.conf").read_text()
UNIT = (DEPLOY / "task-audit.service").read_text()
API = "/api/v1/audit"
MIB = 1024 * 1024
#: The highest exposure that `systemd-analyze security` may find, from 0 (none) to 100.
THRESHOLD = 15
DEFAULTS = {name: field.default for name, field in Settings.model_fields.items()}


@dataclass
class Proxy:
    """nginx, as the sample configures it, before a service."""

    port: int
    plain_port: int
    context: ssl.SSLContext

    def connection(self) -> HTTPSConnection:
        return HTTPSConnection("localhost", self.port, context=self.context, timeout=60)

    def request(
        self, method: str, path: str, body: Any = None, **headers: str
    ) -> tuple[HTTPResponse, bytes]:
        connection = self.connection()
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None:
            sent = {"Content-Type": "application/json", **sent}
            body = json.dumps(body)
        with contextlib.closing(connection):
            connection.request(method, path, body, sent)
            response = connection.getresponse()
            return response, response.read()

    def get(self, path: str, **headers: str) -> tuple[HTTPResponse, bytes]:
        return self.request("GET", path, **headers)


@contextlib.contextmanager
def proxying(url: str, folder: Path) -> Iterator[Proxy]:
    """Run nginx on the sample, with other ports, another name and a certificate of its own."""
    nginx, openssl = needs("nginx"), needs("openssl")
    certificate, key = folder / "fullchain.pem", folder / "privkey.pem"
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost",
         "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    port, plain_port = free_port(), free_port()
    site = re.sub(r" *listen \[::\].*\n", "", NGINX)
    for old, new in {
        "listen 443": f"listen 127.0.0.1:{port}",
        "listen 80": f"listen 127.0.0.1:{plain_port}",
        "server 127.0.0.1:8080": f"server {url.removeprefix('http://')}",
        "audit.example.com": "localhost",
        "/etc/ssl/task-audit": str(folder),
    }.items():
        assert old in site
        site = site.replace(old, new)
    (folder / "site.conf").write_text(site)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"    {kind}_temp_path {folder}/{kind};\n" for kind in kinds)
    configuration = folder / "nginx.conf"
    configuration.write_text(
        f"{'user root;' if os.geteuid() == 0 else ''}\ndaemon off;\npid {folder}/nginx.pid;\n"
        f"worker_processes 1;\nerror_log stderr warn;\nevents {{}}\nhttp {{\n"
        f"    access_log off;\n{temporary}    include {folder}/site.conf;\n}}\n"
    )
    command: list[str | Path] = [nginx, "-p", folder, "-e", "stderr", "-c", configuration]
    checked = subprocess.run([*command, "-t", "-q"], capture_output=True, text=True, check=False)
    assert (0, "") == (checked.returncode, checked.stderr)
    context = ssl.create_default_context(cafile=certificate)
    with (folder / "log").open("wb") as log, subprocess.Popen(command, stderr=log) as process:
        try:
            wait_until(lambda: accepts(port) or process.poll() is not None)
            assert process.poll() is None, (folder / "log").read_text()
            yield Proxy(port, plain_port, context)
        finally:
            process.terminate()
            process.wait(20)


@pytest.fixture
def proxy(dsn: str, tmp_path: Path) -> Iterator[Proxy]:
    with serving("--dsn", dsn) as (_, url, _), proxying(url, tmp_path) as proxy:
        yield proxy


def big(count: int, **members: Any) -> list[dict[str, Any]]:
    """Tasks of almost 1 MiB each."""
    return [task(error_message="x" * (MIB - 10_000), **members) for _ in range(count)]


def test_proxy_keeps_an_encoded_slash_in_a_path(proxy: Proxy) -> None:
    recorded, _ = proxy.request("POST", f"{API}/tasks", task(services_touched=["team/api"]))
    response, body = proxy.get(f"{API}/by-service/team%2Fapi")
    unknown, _ = proxy.get(f"{API}/by-service/team/api")

    assert (201, 200, 404) == (recorded.status, response.status, unknown.status)
    assert 1 == json.loads(body)["total"]


def test_proxy_passes_conditional_requests_and_request_ids_on(proxy: Proxy) -> None:
    sent = task(status="pending")
    proxy.request("POST", f"{API}/tasks", sent)
    for _ in range(20):  # the counts may be folded in between: then the version is another one
        first, _ = proxy.get(f"{API}/query", Accept_Encoding="gzip", X_Request_ID="mine")
        again, body = proxy.get(
            f"{API}/query", Accept_Encoding="gzip", If_None_Match=first.headers["ETag"]
        )
        if again.status == 304:
            break
    path = f"{API}/tasks/{sent['task_id']}"
    etag = proxy.get(path)[0].headers["ETag"]
    moved, _ = proxy.request("PATCH", path, {"status": "executing"}, If_Match=etag)
    stale, _ = proxy.request("PATCH", path, {"status": "failed"}, If_Match=etag)
    changed, _ = proxy.get(f"{API}/query", If_None_Match=first.headers["ETag"])

    assert (200, 304, 200) == (first.status, again.status, changed.status)
    assert (200, 412) == (moved.status, stale.status)
    assert b"" == body
    assert first.headers["ETag"] == again.headers["ETag"]
    assert "mine" == first.headers["X-Request-ID"]
    assert 32 == len(changed.headers["X-Request-ID"])
    assert first.headers["Strict-Transport-Security"]


def test_proxy_passes_bodies_of_20_mib_and_pages_of_32_mib(proxy: Proxy) -> None:
    batches = [big(20), big(20)]
    statuses = [proxy.request("POST", f"{API}/tasks", batch)[0].status for batch in batches]
    found, sizes, path = [], [], f"{API}/query?limit=1000"
    while path:
        response, body = proxy.get(path)
        assert 200 == response.status
        page = json.loads(body)
        sizes.append(len(body))
        found += [one["task_id"] for one in page["tasks"]]
        cursor = page["next_cursor"]
        path = f"{API}/query?limit=1000&cursor={cursor}" if cursor else ""

    assert [201, 201] == statuses
    assert {one["task_id"] for batch in batches for one in batch} == set(found)
    assert 40 == len(found)
    assert max(sizes) > 20 * MIB


def test_slow_client_behind_the_proxy_gets_its_whole_page(dsn: str, tmp_path: Path) -> None:
    """nginx takes the page at once; the service would end the connection after three seconds."""
    limits = ("--request-timeout-seconds", "3")
    with serving("--dsn", dsn, *limits) as (_, url, _), proxying(url, tmp_path) as proxy:
        for _ in range(4):
            response, _ = proxy.request("POST", f"{API}/tasks", big(5))
            assert 201 == response.status
        connection = proxy.connection()
        with contextlib.closing(connection):
            connection.request("GET", f"{API}/query")
            response = connection.getresponse()
            started = response.read(1000)
            time.sleep(6)
            page = json.loads(started + response.read())

    assert 20 == len(page["tasks"])


def test_proxy_accepts_long_request_lines_and_headers(proxy: Proxy) -> None:
    intents = "&".join(f"intent={number}{'%C3%A9' * 100}" for number in range(100))
    assert 60_000 < len(intents) < MAX_URL_BYTES
    response, body = proxy.get(f"{API}/query?{intents}")
    header, _ = proxy.get(f"{API}/query", X_Long="x" * (MAX_HEADER_BYTES - 100))
    longer, told = proxy.get(f"{API}/query?intent={'x' * (MAX_URL_BYTES + 1000)}")

    assert (200, 0) == (response.status, json.loads(body).get("total")), body
    assert 200 == header.status
    assert (414, "urn:task-audit:problem:url-too-long") == (longer.status, json.loads(told)["type"])


@pytest.mark.parametrize(
    ("status", "method", "path", "body", "header"),
    [
        (414, "GET", f"{API}/query?intent={'x' * 90_000}", None, "x"),
        (400, "GET", f"{API}/query", None, "x" * 90_000),
        (413, "POST", f"{API}/tasks", "x" * (33 * MIB), "x"),
    ],
)
def test_proxy_reports_its_own_errors_as_problems(
    proxy: Proxy, status: int, method: str, path: str, body: Any, header: str
) -> None:
    try:
        response, told = proxy.request(method, path, body, X_Long=header)
    except (BrokenPipeError, ConnectionResetError, ssl.SSLError):
        assert status == 413  # nginx answers and closes while the body is still being sent
        return
    problem = json.loads(told)

    assert status == response.status == problem["status"]
    assert "application/problem+json" == response.headers["Content-Type"]
    assert response.headers["X-Request-ID"] == problem["instance"]


def test_proxy_answers_503_while_no_service_is_there(tmp_path: Path) -> None:
    with proxying(f"http://127.0.0.1:{free_port()}", tmp_path) as proxy:
        response, body = proxy.get(f"{API}/query", X_Request_ID='a "b"')
        plain = HTTPConnection("localhost", proxy.plain_port)
        with contextlib.closing(plain):
            plain.request("GET", f"{API}/by-service/a%2Fb?days=7", headers={"Host": "localhost"})
            moved = plain.getresponse()

    assert 'a "b"' != json.loads(body)["instance"]
    assert (503, "1") == (response.status, response.headers["Retry-After"])
    assert {"type", "title", "status", "detail", "instance"} == set(json.loads(body))
    assert 308 == moved.status
    assert f"https://localhost{API}/by-service/a%2Fb?days=7" == moved.headers["Location"]


def directive(name: str, text: str = NGINX) -> str:
    (found,) = set(re.findall(rf"^\s*{name}[ =]([^;\n]+)", text, re.MULTILINE))
    return str(found)


def test_limits_of_the_samples_fit_the_settings() -> None:
    body = int(directive("client_max_body_size").removesuffix("m")) * MIB
    read = int(directive("proxy_read_timeout").removesuffix("s"))
    idle = int(re.findall(r"keepalive_timeout (\d+)s", NGINX)[0])

    assert body == DEFAULTS["max_body_bytes"]
    assert read > DEFAULTS["request_timeout_seconds"]
    assert idle < DEFAULTS["idle_timeout_seconds"]
    assert int(directive("TimeoutStopSec", UNIT)) >= DEFAULTS["request_timeout_seconds"] + 15
    assert int(directive("LimitNOFILE", UNIT)) > 2 * DEFAULTS["max_connections"]
    assert set(re.findall(r"AUDIT_(\w+)", NGINX + UNIT)) <= {name.upper() for name in DEFAULTS}


def test_unit_is_complete_and_hardened(tmp_path: Path) -> None:
    analyze = needs("systemd-analyze")
    unit = tmp_path / "task-audit.service"
    unit.write_text(UNIT.replace("/opt/audit/bin/audit", str(AUDIT)))
    verified, rated = (
        subprocess.run(
            [analyze, *arguments, unit], capture_output=True, text=True, check=False
        )
        for arguments in (["verify"], ["security", "--offline=true", f"--threshold={THRESHOLD}"])
    )  # fmt: skip
    said = re.findall(r"exposure level for task-audit.service: ([\d.]+) (\w+)", rated.stdout)
    manual = (DEPLOY.parent / "operations.md").read_text()

    assert ["[Unit]", "[Service]", "[Install]"] == re.findall(r"^\[\w+\]", UNIT, re.MULTILINE)
    assert (0, "", "") == (verified.returncode, verified.stdout, verified.stderr)
    assert 0 == rated.returncode, rated.stdout
    assert "OK" == said[0][1]
    assert f"{said[0][0]} OK" in manual


def allowed_calls() -> set[str]:
    """The system calls that the unit allows, as systemd names them."""
    groups: dict[str, list[str]] = {}
    command: list[str | Path] = [needs("systemd-analyze"), "--no-pager", "syscall-filter"]
    for line in subprocess.run(
        command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ).stdout.splitlines():
        name = line.strip()
        if line.startswith("@"):
            members = groups.setdefault(name, [])
        elif name and not name.startswith("#"):
            members.append(name)

    def calls(group: str) -> set[str]:
        found = set()
        for name in groups[group]:
            found |= calls(name) if name.startswith("@") else {name}
        return found

    allowed: set[str] = set()
    for rule in re.findall(r"^SystemCallFilter=(.*)", UNIT, re.MULTILINE):
        listed = {call for group in rule.lstrip("~").split() for call in calls(group)}
        allowed = allowed - listed if rule.startswith("~") else allowed | listed
    return allowed


def test_service_makes_only_the_system_calls_that_the_unit_allows(dsn: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    traced: list[str | Path] = [needs("strace"), "-D", "-f", "-qq", "-o", trace, AUDIT]
    with serving("--dsn", dsn, "--workers", "2", audit=traced) as (_, url, _):
        for path in (f"{API}/query", "/docs", "/metrics", "/readyz"):
            connection = HTTPConnection(url.removeprefix("http://"), timeout=30)
            with contextlib.closing(connection):
                connection.request("GET", path)
                assert 200 == connection.getresponse().status
    made = set(re.findall(r"^\d+ +(\w+)\(", trace.read_text(), re.MULTILINE))

    assert {"accept4", "epoll_pwait", "epoll_wait"} & made
    assert set() == made - allowed_calls()
