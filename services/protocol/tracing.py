"""Spans of requests, where an OpenTelemetry collector is there to take them.

A span names its parent by a W3C `traceparent`, which a caller may send, the gateway passes on in the request, and a worker goes on
from. services.protocol.otlp makes the spans; it alone imports OpenTelemetry, and only where an endpoint is set.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Literal, Protocol, cast

Attributes = Mapping[str, str | int | float | bool]
Side = Literal["server", "consumer"]


class Span(Protocol):
    """Times are those of time.time_ns()."""

    traceparent: str

    def child(self, name: str, begun_ns: int, ended_ns: int) -> None:
        """A part of it that is over."""

    def end(self, *, error: str = "", attributes: Attributes | None = None) -> None:
        """Once. `error` says why it failed."""


class Tracer(Protocol):
    def begin(self, name: str, *, side: Side, parent: str, attributes: Attributes) -> Span:
        """`parent` is a traceparent; empty, or none that can be read: the span begins a trace of its own."""

    def close(self) -> None:
        """Sends what is left."""


class TracingMissing(Exception):
    """The endpoint is set and OpenTelemetry is not installed."""


def tracer_to(endpoint: str, *, service: str) -> Tracer | None:
    """None where `endpoint` is empty. Raises TracingMissing."""
    if not endpoint:
        return None
    try:
        otlp = import_module("services.protocol.otlp")
    except ImportError as error:
        raise TracingMissing("CORRAL_OTLP_ENDPOINT is set, but the extra `tracing` is not installed") from error
    return cast(Tracer, otlp.OtlpTracer(endpoint, service=service))
