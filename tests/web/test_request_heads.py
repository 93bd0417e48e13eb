"""Limits of the head of a request, and the problems for requests over them."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.processes import connected, serving

QUERY = "/api/v1/audit/query"


@pytest.fixture(scope="module")
def url(postgres: str, template: str) -> Iterator[str]:
    dsn = postgres.replace("/postgres?", f"/{template}?")
    with serving("--workers", "1", "--dsn", dsn) as (_, url, _):
        yield url


def answer_to(url: str, *lines: str) -> tuple[int, dict[str, str], dict[str, object]]:
    """Send a head and return status, headers and body."""
    with connected(url) as connection:
        connection.sendall("\r\n".join([*lines, "Connection: close", "", ""]).encode())
        received = b""
        while chunk := connection.recv(65_536):
            received += chunk
    head, _, body = received.partition(b"\r\n\r\n")
    status, *fields = head.decode().split("\r\n")
    headers = dict(field.split(": ", 1) for field in fields)
    return int(status.split()[1]), headers, json.loads(body)


def head_of_intents(total: int) -> str:
    """A request line whose URL has `total` bytes: allowed parameters of allowed lengths."""
    target = f"{QUERY}?"
    for n in range(100):
        pair = f"&intent={n:03}{'%C3%A4' * 200}"
        if len(target) + len(pair) <= total:
            target += pair
    return f"GET {target}{'&' * (total - len(target))} HTTP/1.1"


@pytest.mark.parametrize("size", [10_000, 64 * 1024])
def test_a_url_up_to_the_limit_is_accepted(url: str, size: int) -> None:
    status, _, _ = answer_to(url, head_of_intents(size), "Host: x")

    assert status == 200


@pytest.mark.parametrize("size", [64 * 1024 + 1, 70_000, 250_000])
def test_a_longer_url_is_414(url: str, size: int) -> None:
    line = f"GET {QUERY}?intent={'a' * (size - len(QUERY) - 8)} HTTP/1.1"

    status, headers, problem = answer_to(url, line, "Host: x")

    assert status == 414
    assert headers["Content-Type"] == "application/problem+json"
    assert problem["type"] == "urn:task-audit:problem:url-too-long"
    assert problem["detail"] == "the URL is over 65536 bytes"
    assert problem["instance"] == headers["X-Request-ID"]


def test_a_header_field_is_accepted_up_to_the_limit(url: str) -> None:
    line = f"GET {QUERY} HTTP/1.1"

    assert 200 == answer_to(url, line, "Host: x", f"X-Long: {'a' * 32_000}")[0]
    status, _, problem = answer_to(url, line, "Host: x", f"X-Long: {'a' * 40_000}")

    assert status == 431
    assert problem["type"] == "urn:task-audit:problem:headers-too-large"
    assert problem["detail"] == "a header field is over 32768 bytes"


def test_header_fields_are_accepted_up_to_the_limit(url: str) -> None:
    line = f"GET {QUERY} HTTP/1.1"

    assert 200 == answer_to(url, line, "Host: x", *(f"X-{n}: 1" for n in range(120)))[0]
    status, _, problem = answer_to(url, line, "Host: x", *(f"X-{n}: 1" for n in range(130)))

    assert status == 431
    assert problem["detail"] == "the request has over 128 header fields"


@pytest.mark.parametrize("line", ["GET", "GET / HTTP/9.9", "\x16\x03\x01", "G\x00T / HTTP/1.1"])
def test_invalid_http_is_400(url: str, line: str) -> None:
    status, _, problem = answer_to(url, line, "Host: x")

    assert status == 400
    assert problem["detail"] == "not a valid HTTP request"


def test_pages_can_read_why_a_request_was_not_read_if_cors_is_configured(
    url: str, postgres: str, template: str
) -> None:
    dsn = postgres.replace("/postgres?", f"/{template}?")
    too_long = (f"GET {QUERY} HTTP/1.1", "Host: x", f"X-Long: {'a' * 40_000}")
    options = ("--cors-origin", "https://ops.example.com", "--max-connections", "1")

    with serving("--workers", "1", "--dsn", dsn, *options) as (_, open_url, _):
        invalid = answer_to(open_url, "GET")
        long = answer_to(open_url, *too_long)
        with connected(open_url):
            crowded = answer_to(open_url, f"GET {QUERY} HTTP/1.1", "Host: x")
    closed = answer_to(url, *too_long)

    for expected, (status, headers, _) in ((400, invalid), (431, long), (503, crowded)):
        assert status == expected
        assert headers["Access-Control-Allow-Origin"] == "*"
        assert "X-Request-ID" in headers["Access-Control-Expose-Headers"]
    assert not any(name.startswith("Access-Control-") for name in closed[1])
