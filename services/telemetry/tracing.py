"""The interface for tracing requests. services.telemetry.otlp implements it with OpenTelemetry.

A span names its parent with a W3C `traceparent`. A caller can send one. The gateway puts that of its span into the request,
and the worker's span is a child of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol

Attributes = Mapping[str, str | int | float | bool]
Side = Literal["server", "consumer"]


class Span(Protocol):
    """Times are nanoseconds since the epoch, as from time.time_ns()."""

    traceparent: str

    def child(self, name: str, start_ns: int, end_ns: int) -> None:
        """Adds a completed child span."""

    def end(self, *, error: str = "", attributes: Attributes | None = None) -> None:
        """Ends the span; call it once. `error` is the reason for a failure, empty on success."""


class Tracer(Protocol):
    def begin(self, name: str, *, side: Side, parent: str, attributes: Attributes) -> Span:
        """Starts a span. `parent` is a traceparent; if it is empty or invalid, the span starts a new trace."""

    def close(self) -> None:
        """Sends the remaining spans."""
