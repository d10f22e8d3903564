"""What a process opens to be seen by: its metrics' port, and its way to a collector of spans."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from services.protocol.exposition import Exposition
from services.protocol.telemetry_variables import TelemetryVariables
from services.protocol.tracing import Tracer, TracingMissing, tracer_to


class TelemetryRefused(Exception):
    """One sentence for whoever starts the process."""


@dataclass(frozen=True)
class Telemetry:
    """`address` is the `host:port` of the metrics as others reach it, empty where none are served; `tracer` is None where no spans are
    wanted."""

    address: str = ""
    tracer: Tracer | None = None


UNSEEN = Telemetry()


@contextmanager
def telemetry(
    service: str, settings: TelemetryVariables, registry: CollectorRegistry, *, redis_url: str, traced: bool = False
) -> Iterator[Telemetry]:
    """`traced`: requests pass through the service. Raises TelemetryRefused where the settings cannot be followed."""
    host, port = settings.metrics_host, settings.metrics_port
    try:
        tracer = tracer_to(settings.otlp_endpoint if traced else "", service=service)
        exposition = Exposition(registry, host=host, port=port, redis_url=redis_url)
    except TracingMissing as error:
        raise TelemetryRefused(str(error)) from error
    except OSError as error:
        why = f"cannot serve metrics on {host}:{port}: {error.strerror}; set CORRAL_METRICS_PORT"
        raise TelemetryRefused(why) from error
    try:
        yield Telemetry(exposition.address, tracer)
    finally:  # the metrics end with the process: to stop their thread in order would take half a second
        if tracer is not None:
            tracer.close()
