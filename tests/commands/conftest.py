"""Tasks and services that the tests of commands read."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import pytest

from tests.commandline import audit, lines
from tests.conftest import execute, task
from tests.processes import serving

LONG = "x" * 500
DIGITS = "123456789012345678901234567890.120"


@pytest.fixture
def changed(dsn: str) -> str:
    """The id of a task that was recorded and changed twice."""
    one = task(status="pending", error_message=None)
    assert audit("record", "-", given=lines(one), AUDIT_DSN=dsn)[0] == 0
    execute(
        dsn,
        "SELECT sequence_task_events(10)",
        f"UPDATE tasks SET outcome = '{{\"n\": {DIGITS}}}', error_message = '{LONG}'",
        "UPDATE tasks SET status = 'failed', completed_at = '2026-01-01T00:00:00Z'",
    )
    return str(one["task_id"])


@pytest.fixture
def url(dsn: str) -> Iterator[str]:
    """The URL of a service on the database."""
    with serving("--workers", "1", AUDIT_DSN=dsn) as (_, address, _):
        yield address


@pytest.fixture(params=["dsn", "url"])
def where(request: pytest.FixtureRequest, dsn: str) -> Iterator[tuple[str, str]]:
    """The options to read from a database and from a service."""
    if request.param == "dsn":
        yield "--dsn", dsn
    else:
        with serving("--workers", "1", AUDIT_DSN=dsn) as (_, url, _):
            yield "--url", url


class AnsweringServer:
    """A service that answers with given statuses, the last one for ever, with or without TLS.

    It keeps the API keys that it gets.
    """

    def __init__(
        self, *statuses: int, body: str = '{"scopes":[]}', certificates: Path | None = None
    ) -> None:
        keys = self.keys = []  # type: list[str | None]
        left = list(statuses) or [200]

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                keys.append(self.headers.get("Authorization"))
                self.send_response(left.pop(0) if len(left) > 1 else left[0])
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Retry-After", "1")
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        scheme = "http"
        if certificates is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificates / "server.crt", certificates / "server.key")
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
            scheme = "https"
        self.url = f"{scheme}://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
