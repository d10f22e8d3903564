"""Starts a process's telemetry: the metrics server, and the tracer that sends spans to a collector."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import cast

from prometheus_client import CollectorRegistry

from services.telemetry.exposition import Exposition
from services.telemetry.tracing import Tracer
from services.telemetry.variables import TelemetryVariables


class TelemetryStartFailed(Exception):
    """The telemetry settings cannot be applied. The message is one sentence for the operator."""


@dataclass(frozen=True)
class Telemetry:
    """`address` is the `host:port` by which Prometheus reaches the metrics, empty if it cannot or none are served. `tracer` is
    None if tracing is off."""

    address: str = ""
    tracer: Tracer | None = None


NO_TELEMETRY = Telemetry()


@contextmanager
def telemetry(
    service: str, settings: TelemetryVariables, registry: CollectorRegistry, *, redis_url: str, traced: bool = False
) -> Iterator[Telemetry]:
    """`traced`: the service handles requests, so it sends spans. Raises TelemetryStartFailed if the settings cannot be applied."""
    host, port = settings.metrics_host, settings.metrics_port
    try:
        tracer = _tracer_to(settings.otlp_endpoint, service=service) if traced and settings.otlp_endpoint else None
        exposition = Exposition(registry, host=host, port=port, redis_url=redis_url, advertise=settings.metrics_advertise)
    except OSError as error:
        why = f"cannot serve metrics on {host}:{port}: {error.strerror}; set CORRAL_METRICS_PORT"
        raise TelemetryStartFailed(why) from error
    try:
        yield Telemetry(exposition.address, tracer)
    finally:  # the metrics server ends with the process: stopping it cleanly would take half a second
        if tracer is not None:
            tracer.close()


def _tracer_to(endpoint: str, *, service: str) -> Tracer:
    """Imports OpenTelemetry only if it is used, because it is an optional dependency."""
    try:
        otlp = import_module("services.telemetry.otlp")
    except ImportError as error:
        raise TelemetryStartFailed("CORRAL_OTLP_ENDPOINT is set, but the extra `tracing` is not installed") from error
    return cast(Tracer, otlp.OtlpTracer(endpoint, service=service))
