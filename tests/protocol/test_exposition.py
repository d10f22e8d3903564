"""Serving metrics, and where others find them."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest
from prometheus_client import CollectorRegistry, Counter
from pydantic import ValidationError

from services.protocol.exposition import Exposition
from services.protocol.telemetry import TelemetryRefused, telemetry
from services.protocol.telemetry_variables import MetricsPort, TelemetryVariables
from tests.scraping import scrape

REDIS = "redis://127.0.0.1:6379/0"


@contextmanager
def exposed(*, host: str = "127.0.0.1", port: MetricsPort = "auto", redis_url: str = REDIS) -> Iterator[str]:
    registry = CollectorRegistry()
    Counter("corral_requests", "x", ["model"], registry=registry).labels("m").inc(3)
    with closing(Exposition(registry, host=host, port=port, redis_url=redis_url)) as exposition:
        yield exposition.address


async def test_auto_takes_a_free_port() -> None:
    with exposed() as one, exposed() as other:
        assert one != other
        for address in (one, other):
            [sample] = (await scrape(address)).samples
            assert (sample.name, sample.labels, sample.value) == ("corral_requests_total", {"model": "m"}, 3)


def test_port_0_serves_nothing() -> None:
    with exposed(port=0) as address:
        assert address == ""


async def test_behind_a_wildcard_the_way_to_redis_counts() -> None:
    with exposed(host="0.0.0.0") as address:
        assert address.startswith("127.0.0.1:")
        assert (await scrape(address)).samples
    with exposed(host="0.0.0.0", redis_url="unix:///run/redis.sock") as address:
        assert address.startswith("127.0.0.1:")


def test_the_port_is_free_after_closing() -> None:
    with exposed() as address:
        port = int(address.rpartition(":")[2])
    with exposed(port=port) as again:
        assert again == address


def test_a_taken_port_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings = TelemetryVariables(metrics_port=port)
        wanted = f"cannot serve metrics on 127.0.0.1:{port}: Address already in use; set CORRAL_METRICS_PORT"
        with pytest.raises(TelemetryRefused, match=wanted), telemetry("x", settings, CollectorRegistry(), redis_url=REDIS):
            pass


@pytest.mark.parametrize("port", ["none", "-1", "65536", "1.5", ""])
def test_what_is_no_port(port: str) -> None:
    with pytest.raises(ValidationError, match="is no port; say it like 9464, 0 for none, or auto"):
        TelemetryVariables(metrics_port=port)  # type: ignore[arg-type]


@pytest.mark.parametrize(("said", "meant"), [("9464", 9464), ("0", 0), ("auto", "auto")])
def test_what_is_one(said: str, meant: MetricsPort, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORRAL_METRICS_PORT", said)
    assert TelemetryVariables().metrics_port == meant


def test_a_collector_is_a_url() -> None:
    with pytest.raises(ValidationError, match='"collector:4318" is no http:// or https:// address'):
        TelemetryVariables(otlp_endpoint="collector:4318")
