"""`audit record --url` through what stands before a service: proxies, limits, redirects."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
import threading
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.commandline import HIDDEN, audit, count, fails_with, lines
from tests.conftest import task
from tests.needs import needs
from tests.processes import free_port, serving
from tests.waiting import wait_until

#: Status, headers and body.
Answer = tuple[int, dict[str, str], bytes]

#: Run something before a service at a URL; yield the URL of what runs.
Before = Callable[[str], contextlib.AbstractContextManager[str]]

KEY = f"taskaudit_{HIDDEN}"
NO_PROXY = {"NO_PROXY": "", "no_proxy": "", "http_proxy": "", "https_proxy": ""}


class Handler(BaseHTTPRequestHandler):
    """Answers with what `respond` returns: a status, headers and a body."""

    protocol_version = "HTTP/1.1"
    respond: Callable[[Handler, bytes], Answer]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        status, headers, answer = type(self).respond(self, body)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def do_CONNECT(self) -> None:
        self.send_error(407, "who are you")

    def log_message(self, *_: object) -> None:
        """Nothing is logged."""


@contextlib.contextmanager
def answering(
    respond: Callable[[Handler, bytes], Answer],
) -> Iterator[tuple[str, list[tuple[str, str | None, int]]]]:
    """Run a server; yield its URL and the requests that it got: path, key and size."""
    got: list[tuple[str, str | None, int]] = []

    def noting(handler: Handler, body: bytes) -> Answer:
        got.append((handler.path, handler.headers["Authorization"], len(body)))
        return respond(handler, body)

    made = type("Made", (Handler,), {"respond": noting})
    server = ThreadingHTTPServer(("127.0.0.1", 0), made)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", got
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def forward(handler: Handler, body: bytes, to: str | None = None) -> Answer:
    """Pass a request on, to where its first line or `to` says."""
    target = urlsplit(to or handler.path)
    connection = http.client.HTTPConnection(target.hostname or "", target.port or 80, timeout=30)
    headers = {name: value for name, value in handler.headers.items() if name != "Host"}
    connection.request("POST", target.path, body, headers)
    answer = connection.getresponse()
    read = answer.read()
    connection.close()
    return answer.status, {}, read


def recorded(handler: Handler, body: bytes) -> Answer:
    """Answer as the service does."""
    ids = [one["task_id"] for one in json.loads(body)]
    return 201, {}, json.dumps({"recorded": len(ids), "duplicates": 0, "task_ids": ids}).encode()


# --- limits of size -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nginx_before(tmp_path_factory: pytest.TempPathFactory) -> Before:
    """Run nginx before a service, with a limit of 512 KiB for a body."""
    program = needs("nginx")

    @contextlib.contextmanager
    def run(url: str) -> Iterator[str]:
        folder, port = tmp_path_factory.mktemp("nginx"), free_port()
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        temporary = " ".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
        (folder / "nginx.conf").write_text(
            f"{'user root;' if os.geteuid() == 0 else ''} daemon off; pid {folder}/pid;\n"
            f"error_log {folder}/error.log; events {{}}\n"
            f"http {{ access_log off; client_max_body_size 512k; {temporary}\n"
            f"server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass {url}; }} }} }}\n"
        )
        command: list[str | Path] = [
            program,
            "-c",
            str(folder / "nginx.conf"),
            "-e",
            str(folder / "error.log"),
        ]
        with subprocess.Popen(command) as process:
            wait_until(lambda: _answers(f"http://127.0.0.1:{port}/healthz"))
            yield f"http://127.0.0.1:{port}"
            process.terminate()

    return run


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except OSError:
        return False
    return True


def test_batches_that_are_too_large_for_a_proxy_are_sent_in_halves(
    dsn: str, tmp_path: Path, nginx_before: Before
) -> None:
    numbers = {"v": 12345678901234567890123456789012345678901234567890, "pi": 3.1}
    tasks = [task(request_text=f"{n} " + "x" * 5000, outcome=numbers) for n in range(900)]
    (tmp_path / "tasks").write_text(lines(*tasks))
    with serving(AUDIT_DSN=dsn) as (_, url, _), nginx_before(url) as proxy:
        first = audit("record", str(tmp_path / "tasks"), "--url", proxy, **NO_PROXY)
        again = audit("record", str(tmp_path / "tasks"), "--url", proxy, **NO_PROXY)

    assert (0, "recorded 900, duplicates 0\n", "") == first
    assert (0, "recorded 0, duplicates 900\n", "") == again
    assert 900 == count(dsn)


def test_a_task_that_is_too_large_by_itself_is_named(
    dsn: str, tmp_path: Path, nginx_before: Before
) -> None:
    # Below the limit of the service, above that of the proxy.
    large = task(request_text="x", error_message="é" * 300_000)
    text = json.dumps(large, ensure_ascii=False)
    (tmp_path / "tasks").write_text(lines(task()) + text + "\n" + lines(task()))
    with serving(AUDIT_DSN=dsn) as (_, url, _), nginx_before(url) as proxy:
        result = audit("record", str(tmp_path / "tasks"), "--url", proxy, **NO_PROXY)

    assert fails_with(result, 65, "line 2: the task takes a request of 600,", "(413)")


def test_a_size_that_was_refused_is_not_tried_again(tmp_path: Path) -> None:
    def at_most(handler: Handler, body: bytes) -> Answer:
        return recorded(handler, body) if len(body) < 100_000 else (413, {}, b"too large")

    (tmp_path / "tasks").write_text(lines(*(task(request_text="x" * 80) for _ in range(4000))))
    with answering(at_most) as (url, got):
        result = audit("record", str(tmp_path / "tasks"), "--url", url, **NO_PROXY)

    refused = [size for _, _, size in got if size >= 100_000]
    assert (0, "recorded 4,000, duplicates 0\n", "") == result
    # The two batches that are under way together may each be refused as a whole and in halves.
    assert len(refused) <= 6
    assert len(got) < 30


# --- proxies --------------------------------------------------------------------------------------


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY"])
def test_a_proxy_of_the_environment_is_used(dsn: str, variable: str) -> None:
    with serving(AUDIT_DSN=dsn) as (_, url, _), answering(forward) as (proxy, got):
        variables = {name: "" for name in NO_PROXY if name != variable.lower()}
        result = audit(
            "record", "-", "--url", url, given=lines(task()), **{**variables, variable: proxy}
        )

    assert (0, "recorded 1, duplicates 0\n", "") == result
    assert [f"{url}/api/v1/audit/tasks"] == [path for path, _, _ in got]


@pytest.mark.parametrize("excepted", ["127.0.0.1", "*", "example.com,127.0.0.1"])
def test_a_proxy_is_not_used_for_what_is_excepted(dsn: str, excepted: str) -> None:
    with serving(AUDIT_DSN=dsn) as (_, url, _):
        variables = {**NO_PROXY, "http_proxy": "http://127.0.0.1:1", "no_proxy": excepted}
        result = audit("record", "-", "--url", url, given=lines(task()), **variables)

    assert 0 == result[0]


def test_a_proxy_that_refuses_is_reported_without_its_password() -> None:
    with answering(recorded) as (proxy, _):
        variables = {**NO_PROXY, "https_proxy": proxy.replace("//", f"//user:{KEY}@")}
        result = audit("demo", "--tasks", "1", "--url", "https://audit.example.com", **variables)

    assert fails_with(result, 69, "cannot be reached: the proxy answers 407 who are you")


def test_a_proxy_that_is_no_url_is_named() -> None:
    variables = {**NO_PROXY, "http_proxy": f"socks5://{KEY}:1"}
    result = audit("demo", "--tasks", "1", "--url", "http://127.0.0.1:1", **variables)

    assert fails_with(result, 69, "HTTP_PROXY must look like http://proxy.example.com:3128")


# --- redirects ------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [307, 308])
def test_a_redirect_of_the_same_request_is_followed(status: int) -> None:
    def moved(handler: Handler, body: bytes) -> Answer:
        if handler.path.startswith("/new/"):
            return recorded(handler, body)
        return status, {"Location": f"/new{handler.path}"}, b""

    with answering(moved) as (url, got):
        variables = {**NO_PROXY, "AUDIT_KEY": KEY}
        result = audit("record", "-", "--url", url, given=lines(task()), **variables)

    assert (0, "recorded 1, duplicates 0\n", "") == result
    assert [f"Bearer {KEY}"] * 2 == [key for _, key, _ in got]
    assert "/new/api/v1/audit/tasks" == got[1][0]


def test_a_key_is_not_sent_to_another_origin() -> None:
    with (
        answering(recorded) as (other, reached),
        answering(lambda handler, _: (307, {"Location": f"{other}{handler.path}"}, b"")) as (
            url,
            got,
        ),
    ):
        variables = {**NO_PROXY, "AUDIT_KEY": KEY}
        result = audit("record", "-", "--url", url, given=lines(task()), **variables)

    assert 0 == result[0]
    assert [f"Bearer {KEY}"] == [key for _, key, _ in got]
    assert [None] == [key for _, key, _ in reached]


@pytest.mark.parametrize(
    ("status", "location", "part"),
    [
        (301, "https://audit.example.com/api/v1/audit/tasks", "https://audit.example.com/"),
        (302, "/login", "/login (302), which a POST does not follow"),
        (303, "/login", "give the address of the service itself"),
        (307, "ftp://x/", "which is not HTTP"),
        (308, "", "redirects more than 5 times"),
        (307, f"https://user:{KEY}@/", "(307)"),
    ],
)
def test_any_other_redirect_is_reported(status: int, location: str, part: str) -> None:
    with answering(lambda *_: (status, {"Location": location}, b"")) as (url, got):
        result = audit("demo", "--tasks", "1", "--url", url, **NO_PROXY)

    assert fails_with(result, 69, part)
    assert len(got) <= 6


# --- what is tried again, and what is not ---------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code"), [(404, 69), (405, 69), (401, 77), (400, 65), (409, 65), (422, 65)]
)
def test_a_refusal_is_not_tried_again(status: int, code: int) -> None:
    answer = json.dumps({"detail": "not like this"}).encode()
    with answering(lambda *_: (status, {}, answer)) as (url, got):
        result = audit("demo", "--tasks", "1", "--url", url, **NO_PROXY)

    assert fails_with(result, code, "not like this")
    assert 1 == len(got)


def test_an_answer_of_another_service_is_reported() -> None:
    with answering(lambda *_: (200, {}, b"<html>welcome</html>")) as (url, got):
        result = audit("demo", "--tasks", "1", "--url", url, **NO_PROXY)

    assert fails_with(result, 69, "is not a task-audit service")
    assert 1 == len(got)


def test_a_service_without_tls_is_not_tried_again() -> None:
    with answering(recorded) as (url, _):
        https = url.replace("http:", "https:")
        result = audit("demo", "--tasks", "1", "--url", https, **NO_PROXY)

    assert fails_with(result, 69, "cannot be reached")


def test_a_service_that_asks_to_wait_is_waited_for() -> None:
    answers = iter([(503, {"Retry-After": "1"}, b""), (429, {}, b"")])

    def busy(handler: Handler, body: bytes) -> Answer:
        return next(answers, None) or recorded(handler, body)

    with answering(busy) as (url, got):
        code, out, told = audit("demo", "--tasks", "1", "--url", url, **NO_PROXY)

    assert (0, "recorded 1, duplicates 0\n") == (code, out)
    assert (3, 2) == (len(got), told.count("trying again in"))
