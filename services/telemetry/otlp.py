"""Tracing with the OpenTelemetry SDK. A background thread sends spans in batches, as OTLP over HTTP."""

from __future__ import annotations

import time

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from services.telemetry.tracing import Attributes, Side

_KINDS = {"server": SpanKind.SERVER, "consumer": SpanKind.CONSUMER}
_propagator = TraceContextTextMapPropagator()


class OtlpTracer:
    """Implements Tracer. If the collector does not answer, spans are lost; requests are not affected."""

    def __init__(self, endpoint: str, *, service: str) -> None:
        self._provider = TracerProvider(resource=Resource.create({"service.name": f"corral-{service}"}))
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{endpoint}/v1/traces")))
        self._tracer = self._provider.get_tracer("corral")

    def begin(self, name: str, *, side: Side, parent: str, attributes: Attributes) -> OtlpSpan:
        context = _propagator.extract({"traceparent": parent}) if parent else None
        return OtlpSpan(self._tracer, self._tracer.start_span(name, context, _KINDS[side], attributes))

    def close(self) -> None:
        self._provider.shutdown()


class OtlpSpan:
    """Implements Span."""

    def __init__(self, tracer: trace.Tracer, span: trace.Span) -> None:
        carrier: dict[str, str] = {}
        self._tracer = tracer
        self._span = span
        self._context = trace.set_span_in_context(span)
        _propagator.inject(carrier, self._context)
        self.traceparent = carrier.get("traceparent", "")

    def child(self, name: str, start_ns: int, end_ns: int) -> None:
        self._tracer.start_span(name, self._context, start_time=start_ns).end(end_ns)

    def end(self, *, error: str = "", attributes: Attributes | None = None) -> None:
        for name, value in (attributes or {}).items():
            self._span.set_attribute(name, value)
        if error:
            self._span.set_status(Status(StatusCode.ERROR, error))
        self._span.end(time.time_ns())
