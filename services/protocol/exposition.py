"""A service's metrics, served as Prometheus text from a thread of its own."""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, disable_created_metrics, start_http_server

from services.protocol.telemetry_variables import MetricsPort

# A series of its own for the time at which each other one began, which nothing asks for.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Exposition:
    """Serves from its making to `close`; nothing where `port` is 0. `address` is `host:port` as others reach it, empty where nothing is
    served: behind a wildcard address, that by which this machine reaches Redis. Raises OSError where the port cannot be had."""

    def __init__(self, registry: CollectorRegistry, *, host: str, port: MetricsPort, redis_url: str) -> None:
        self.address = ""
        self._server = None
        if port == 0:
            return
        self._server, self._thread = start_http_server(0 if port == "auto" else port, host, registry)
        self.address = authority(_reachable(host, redis_url), self._server.server_port)

    def close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()


def authority(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _reachable(host: str, redis_url: str) -> str:
    if host and not _is_wildcard(host):
        return host
    redis = urlsplit(redis_url)
    if not redis.hostname:  # a Unix socket
        return "127.0.0.1"
    family, kind, protocol, _, address = socket.getaddrinfo(redis.hostname, redis.port or 6379, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(address)  # sends nothing: the system only chooses the way
        return str(probe.getsockname()[0])


def _is_wildcard(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False
