"""Optional traces with OpenTelemetry: one span for each request and each statement.

OpenTelemetry reads its own OTEL_… variables for the destination, the sampling and the name of the
service. It is imported only when a `Traces` object is created.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

from audit.errors import Unavailable

if TYPE_CHECKING:
    from opentelemetry.trace import Span

_PARTS: Final = ("opentelemetry", "opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")


def require() -> None:
    """Raise Unavailable if OpenTelemetry is not installed."""
    try:
        missing = any(find_spec(part) is None for part in _PARTS)
    except ModuleNotFoundError:
        missing = True
    if missing:
        raise Unavailable("no OpenTelemetry: install task-audit[otel], or serve without --traces")


class Traces:
    """Creates spans and exports them. Create it in the process that uses it, after any fork."""

    def __init__(self) -> None:
        from opentelemetry import propagate, trace  # noqa: PLC0415 - optional
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415
            OTLPSpanExporter,
        )
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

        ours = Resource({"service.name": "task-audit", "service.version": version("task-audit")})
        self._provider = TracerProvider(resource=ours.merge(OTELResourceDetector().detect()))
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("task-audit", version("task-audit"))
        self._extract = propagate.extract
        self._server, self._client = trace.SpanKind.SERVER, trace.SpanKind.CLIENT
        self._error = trace.StatusCode.ERROR

    @contextmanager
    def request(self, method: str, route: str, headers: Mapping[str, str]) -> Iterator[Span]:
        """Run the block in the span of a request, under the parent that `traceparent` names."""
        with self._tracer.start_as_current_span(
            f"{method} {route}",
            context=self._extract(headers),
            kind=self._server,
            attributes={"http.request.method": method, "http.route": route},
        ) as span:
            yield span

    def answered(self, span: Span, status: int) -> None:
        """Set the status of the response."""
        span.set_attribute("http.response.status_code", status)
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            span.set_status(self._error)

    @contextmanager
    def statement(self, name: str) -> Iterator[None]:
        """Run the block in the span of a statement, without parameters or error messages."""
        with self._tracer.start_as_current_span(
            name,
            kind=self._client,
            attributes={"db.system.name": "postgresql", "db.query.summary": name},
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield
            except BaseException as failure:
                span.set_attribute("error.type", type(failure).__name__)
                span.set_status(self._error)
                raise

    async def close(self) -> None:
        """Export the remaining spans."""
        await asyncio.to_thread(self._provider.shutdown)
