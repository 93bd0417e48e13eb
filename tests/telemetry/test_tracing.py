"""Traces that a collector of OpenTelemetry receives from a running service."""

from __future__ import annotations

import subprocess
import sys
import urllib.request

import psycopg
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.processes import API, fetch, serving
from tests.telemetry.collector import collecting

NOBODY = f"{API}/tasks/00000000-0000-0000-0000-000000000000"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
#: OpenTelemetry is there for the tests; this hides it.
WITHOUT = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "opentelemetry":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hidden())
from audit.commands.main import main
main()
"""


def attributes(span: Span) -> dict[str, str | int]:
    return {one.key: one.value.string_value or one.value.int_value for one in span.attributes}


def test_a_request_and_its_statements_are_spans_of_the_trace_of_the_caller(dsn: str) -> None:
    with collecting() as (collector, got):
        options = ("--dsn", dsn, "--traces", "--workers", "2")
        with serving(*options, OTEL_EXPORTER_OTLP_ENDPOINT=collector, log=subprocess.PIPE) as (
            process,
            url,
            _,
        ):
            headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
            path = f"{API}/by-service/zebra?limit=1"
            urllib.request.urlopen(urllib.request.Request(url + path, headers=headers)).close()
            process.terminate()
            _, err = process.communicate()

    spans = [
        span
        for request in got
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
        if span.trace_id.hex() == TRACE
    ]
    (server,) = [span for span in spans if span.kind == Span.SPAN_KIND_SERVER]
    route = API + "/by-service/{service_name}"
    assert "" == err
    assert (f"GET {route}", PARENT) == (server.name, server.parent_span_id.hex())
    assert {
        "http.request.method": "GET",
        "http.route": route,
        "http.response.status_code": 200,
    } == attributes(server)
    statements = [span for span in spans if span is not server]
    assert {"read_changes", "list_tasks"} <= {span.name for span in statements}
    assert {server.span_id} == {span.parent_span_id for span in statements}
    assert "zebra" not in str(got)
    names = {one.value.string_value for one in got[0].resource_spans[0].resource.attributes}
    assert "task-audit" in names


def test_failures_are_spans_with_an_error(dsn: str) -> None:
    with collecting() as (collector, got):
        options = ("--dsn", dsn, "--traces", "--statement-timeout-seconds", "1")
        with (
            serving(*options, OTEL_EXPORTER_OTLP_ENDPOINT=collector, log=subprocess.PIPE) as (
                process,
                url,
                _,
            ),
            psycopg.connect(dsn) as other,
        ):
            other.execute("LOCK TABLE tasks IN ACCESS EXCLUSIVE MODE")
            assert 504 == fetch(f"{url}{NOBODY}")
            other.rollback()
            process.terminate()
            process.communicate()

    spans = {
        span.name: span
        for request in got
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    }
    server, statement = spans[f"GET {API}/tasks/{{task_id}}"], spans["get_task"]
    assert [Status.STATUS_CODE_ERROR] * 2 == [server.status.code, statement.status.code]
    assert "QueryCanceledError" == attributes(statement)["error.type"]
    assert 504 == attributes(server)["http.response.status_code"]


def test_a_missing_collector_does_not_disturb_responses(dsn: str) -> None:
    endpoint = "http://127.0.0.1:1"
    with serving(
        "--dsn", dsn, "--traces", OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, log=subprocess.PIPE
    ) as (process, url, _):
        assert [200] * 5 == [fetch(f"{url}{API}/query") for _ in range(5)]
        process.terminate()
        process.communicate(timeout=30)

    assert 0 == process.returncode


def test_without_opentelemetry_the_service_says_what_to_install(dsn: str) -> None:
    command = [sys.executable, "-c", WITHOUT, "serve", "--dsn", dsn, "--port", "0", "--traces"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    assert (69, "") == (done.returncode, done.stdout)
    assert "audit: no OpenTelemetry: install task-audit[otel], or serve without --traces\n" == (
        done.stderr
    )


def test_opentelemetry_is_not_imported_without_traces() -> None:
    code = (
        "import sys, audit.process.worker as server; from audit.settings import Settings;"
        " server.create_app(Settings(), 'postgresql://unused');"
        " print(*(name for name in sys.modules if name.startswith('opentelemetry')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert "\n" == done.stdout
