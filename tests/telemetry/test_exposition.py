"""Serving metrics, and the address under which others find them."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest
from prometheus_client import CollectorRegistry, Counter
from pydantic import ValidationError

from services.telemetry.exposition import Exposition
from services.telemetry.metrics_server import MAX_SCRAPES, MetricsServer
from services.telemetry.telemetry import TelemetryStartFailed, telemetry
from services.telemetry.variables import MetricsPort, TelemetryVariables
from tests.conditions import eventually_sync
from tests.scraping import scrape

REDIS = "redis://127.0.0.1:6379/0"


@contextmanager
def exposed(
    *, host: str = "127.0.0.1", port: MetricsPort = "auto", redis_url: str = REDIS, advertise: str = ""
) -> Iterator[str]:
    registry = CollectorRegistry()
    Counter("corral_requests", "x", ["model"], registry=registry).labels("m").inc(3)
    with closing(Exposition(registry, host=host, port=port, redis_url=redis_url, advertise=advertise)) as exposition:
        yield exposition.address


async def test_auto_chooses_a_free_port() -> None:
    with exposed() as one, exposed() as other:
        assert one != other
        for address in (one, other):
            [sample] = (await scrape(address)).samples
            assert (sample.name, sample.labels, sample.value) == ("corral_requests_total", {"model": "m"}, 3)


def test_port_0_serves_no_metrics() -> None:
    with exposed(port=0) as address:
        assert address == ""


async def test_a_wildcard_address_advertises_the_route_to_redis() -> None:
    with exposed(host="0.0.0.0") as address:
        assert address.startswith("127.0.0.1:")
        assert (await scrape(address)).samples
    with exposed(host="0.0.0.0", redis_url="unix:///run/redis.sock") as address:
        assert address.startswith("127.0.0.1:")


def own_address() -> str:
    """This machine's address as another machine sees it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 6379))
        except OSError:
            pytest.skip("this machine has no route to another one")
        return str(probe.getsockname()[0])


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.0.2"])
async def test_a_loopback_address_is_advertised_only_if_redis_is_local(host: str) -> None:
    with exposed(host=host, redis_url="redis://127.0.0.1:1/0") as address:
        assert address.startswith(f"{host}:")
    own_address()
    with exposed(host=host, redis_url="redis://192.0.2.1:6379/0") as address:
        assert address == ""


async def test_the_advertised_address_can_be_set() -> None:
    with exposed(host="0.0.0.0", redis_url="redis://192.0.2.1:6379/0") as address:
        assert address.startswith(f"{own_address()}:")
    with exposed(host="0.0.0.0", advertise="10.0.0.7") as address:
        assert address.startswith("10.0.0.7:")
    with exposed(advertise="fd00::7") as address:
        assert address.startswith("[fd00::7]:")
    with exposed(host="0.0.0.0", advertise="none") as address:
        assert address == ""


@pytest.mark.parametrize("host", ["10.0.0.7:9464", "http://10.0.0.7", "a b", "-a", "a/b"])
def test_an_invalid_advertised_address_is_refused(host: str) -> None:
    with pytest.raises(ValidationError, match="is neither a host name nor an IP address"):
        TelemetryVariables(metrics_advertise=host)


def test_idle_connections_are_closed_and_scrapes_are_served() -> None:
    registry = CollectorRegistry()
    with closing(MetricsServer("127.0.0.1", 0, registry, scrape_s=0.5)) as server:
        with contextlib.ExitStack() as stack:
            idle = [
                stack.enter_context(socket.create_connection(("127.0.0.1", server.server_port), timeout=20))
                for _ in range(MAX_SCRAPES + 3)
            ]
            for connection in idle:
                with contextlib.suppress(ConnectionError):
                    connection.sendall(b"GET /metrics HTTP/1.1\r\nX: ")
            for connection in idle:
                with contextlib.suppress(ConnectionError):
                    assert connection.recv(100) == b""

        def is_served() -> bool:
            with socket.create_connection(("127.0.0.1", server.server_port), timeout=20) as scraper:
                scraper.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
                return scraper.recv(100).startswith(b"HTTP/1.0 200")

        eventually_sync(is_served)


def test_the_port_is_free_after_close() -> None:
    with exposed() as address:
        port = int(address.rpartition(":")[2])
    with exposed(port=port) as again:
        assert again == address


def test_a_port_in_use_is_an_error_in_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings = TelemetryVariables(metrics_port=port)
        wanted = f"cannot serve metrics on 127.0.0.1:{port}: Address already in use; set CORRAL_METRICS_PORT"
        with pytest.raises(TelemetryStartFailed, match=wanted), telemetry("x", settings, CollectorRegistry(), redis_url=REDIS):
            pass


@pytest.mark.parametrize("port", ["none", "-1", "65536", "1.5", ""])
def test_an_invalid_port_is_refused(port: str) -> None:
    with pytest.raises(ValidationError, match="is not a port; use a number such as 9464, 0 for none, or auto"):
        TelemetryVariables(metrics_port=port)


@pytest.mark.parametrize(("text", "port"), [("9464", 9464), ("0", 0), ("auto", "auto")])
def test_valid_ports(text: str, port: MetricsPort, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORRAL_METRICS_PORT", text)
    assert TelemetryVariables().metrics_port == port


def test_the_otlp_endpoint_must_be_a_url() -> None:
    with pytest.raises(ValidationError, match='"collector:4318" is not an http:// or https:// address'):
        TelemetryVariables(otlp_endpoint="collector:4318")
