"""Traces by OpenTelemetry, where they are asked for: a span for each request and each statement.

Where to send them, how many and under which name is said by the OTEL_… variables that
OpenTelemetry reads itself. Nothing of it is imported before a `Traces` is made.
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
    """Makes spans and sends them on. To be made in the process that uses it, not before a fork."""

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
        """Be in the span of a request, a child of the one that its `traceparent` names."""
        with self._tracer.start_as_current_span(
            f"{method} {route}",
            context=self._extract(headers),
            kind=self._server,
            attributes={"http.request.method": method, "http.route": route},
        ) as span:
            yield span

    def answered(self, span: Span, status: int) -> None:
        """Note how a request was answered."""
        span.set_attribute("http.response.status_code", status)
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            span.set_status(self._error)

    @contextmanager
    def statement(self, name: str) -> Iterator[None]:
        """Be in the span of a statement. What it was given is not told, nor what a failure says."""
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
        """Send what has not been sent yet."""
        await asyncio.to_thread(self._provider.shutdown)
