"""A proxy before a service that loses, refuses and delays what a test says."""

from __future__ import annotations

import http.client
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final, Self
from urllib.parse import urlsplit

#: The connection is closed before the service gets the request.
CUT_BEFORE: Final = "cut before"
#: The connection is closed after the service has done what the request says.
CUT_AFTER: Final = "cut after"
#: Half of the body of the response comes, and then the connection is closed.
CUT_WITHIN: Final = "cut within"
#: The request gets no response until the proxy ends.
STALL: Final = "stall"
#: The request goes on to the service.
ON: Final = "on"


@dataclass
class Refusal:
    """A response that the proxy gives itself."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass
class Seen:
    """A request that reached the proxy."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    at: float = field(default_factory=time.monotonic)


class FaultProxy:
    """Passes requests to a service, after it has done to each what `plan` says."""

    def __init__(self, service: str, *plan: str | Refusal) -> None:
        self.plan = deque(plan)
        self.seen: list[Seen] = []
        self._target = urlsplit(service)
        self._ended = threading.Event()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                self.raw_requestline = self.rfile.readline(65537)
                if self.raw_requestline and self.parse_request():
                    proxy.handle(self)
                else:
                    self.close_connection = True

            def log_message(self, *_: object) -> None:
                """Nothing is logged."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._server.shutdown()
        self._server.server_close()

    def handle(self, handler: BaseHTTPRequestHandler) -> None:
        """Do to a request what is next in the plan, or pass it on."""
        body = handler.rfile.read(int(handler.headers["Content-Length"] or 0))
        self.seen.append(Seen(handler.command, handler.path, dict(handler.headers), body))
        fault = self.plan.popleft() if self.plan else ON
        if isinstance(fault, Refusal):
            self._respond(handler, fault.status, fault.headers, fault.body, len(fault.body))
            return
        if fault == STALL:
            self._ended.wait()
        if fault in {CUT_BEFORE, STALL}:
            handler.close_connection = True
            return
        status, headers, answer = self._forwarded(handler, body)
        if fault == CUT_AFTER:
            handler.close_connection = True
            return
        sent = answer[: len(answer) // 2] if fault == CUT_WITHIN else answer
        handler.close_connection = fault == CUT_WITHIN
        self._respond(handler, status, headers, sent, len(answer))

    def _forwarded(
        self, handler: BaseHTTPRequestHandler, body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(
            self._target.hostname or "", self._target.port, timeout=60
        )
        connection.request(handler.command, handler.path, body or None, dict(handler.headers))
        response = connection.getresponse()
        answer = response.read()
        connection.close()
        hop = {"content-length", "connection", "transfer-encoding"}
        headers = {name: value for name, value in response.getheaders() if name.lower() not in hop}
        return response.status, headers, answer

    def _respond(
        self,
        handler: BaseHTTPRequestHandler,
        status: int,
        headers: Mapping[str, str],
        body: bytes,
        length: int,
    ) -> None:
        handler.send_response_only(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(length))
        handler.end_headers()
        handler.wfile.write(body)
