"""Serves a service's metrics as Prometheus text, and works out the address by which Prometheus reaches them."""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, disable_created_metrics

from services.telemetry.metrics_server import MetricsServer
from services.telemetry.variables import MetricsPort

# Drops the `_created` series, one for every counter and histogram. We do not use them.
disable_created_metrics()  # type: ignore[no-untyped-call]


#: Value of `advertise` for metrics that are served but not listed as a scrape target.
NOT_LISTED = "none"


class Exposition:
    """Serves metrics from construction until `close`, or nothing if `port` is 0. Raises OSError if it cannot bind the port.

    `address` is the `host:port` by which Prometheus reaches the metrics; empty if it cannot or nothing is served. Its host is
    `advertise`, or else `host`, or for a wildcard address this machine's address on its route to Redis.
    """

    def __init__(
        self, registry: CollectorRegistry, *, host: str, port: MetricsPort, redis_url: str, advertise: str = ""
    ) -> None:
        self.address = ""
        self._server = None
        if port == 0:
            return
        self._server = MetricsServer(host, 0 if port == "auto" else port, registry)
        if advertised := advertise or _reachable(host, redis_url):
            self.address = "" if advertised == NOT_LISTED else authority(advertised, self._server.server_port)

    def close(self) -> None:
        if self._server is not None:
            self._server.close()


def authority(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _reachable(host: str, redis_url: str) -> str:
    """The address by which others reach `host`. Empty for a loopback address if Redis is on another machine."""
    towards_redis = _address_towards(redis_url)
    if not host or _is_wildcard(host):
        return towards_redis
    return "" if _is_loopback(host) and not _is_loopback(towards_redis) else host


def _address_towards(redis_url: str) -> str:
    redis = urlsplit(redis_url)
    if not redis.hostname:  # a Unix socket
        return "127.0.0.1"
    family, kind, protocol, _, address = socket.getaddrinfo(redis.hostname, redis.port or 6379, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(address)  # sends nothing: the system only chooses the route
        return str(probe.getsockname()[0])


def _is_wildcard(host: str) -> bool:
    address = _parsed(host)
    return address is not None and address.is_unspecified


def _is_loopback(host: str) -> bool:
    address = _parsed(host)
    return host == "localhost" if address is None else address.is_loopback


def _parsed(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
