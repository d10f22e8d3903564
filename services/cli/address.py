"""The address of a gateway, in the forms that OLLAMA_HOST takes."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from services.cli.errors import CommandError

DEFAULT_PORTS = {"": 11434, "http": 80, "https": 443}


@dataclass(frozen=True)
class Address:
    """`host` empty: every interface. `path` begins with `/` or is empty."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def reachable_host(self) -> str:
        """What a client connects to: an address that stands for every interface is reached over loopback."""
        return {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)

    @property
    def url(self) -> str:
        host = f"[{self.reachable_host}]" if ":" in self.reachable_host else self.reachable_host
        return f"{self.scheme}://{host}:{self.port}{self.path}"

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def parse_address(text: str) -> Address:
    """`[scheme://]host[:port][/path]`. A scheme brings its own default port. Raises CommandError."""
    scheme, separator, rest = text.strip().rpartition("://")
    if scheme not in DEFAULT_PORTS or (separator and not scheme):
        raise CommandError(f"CORRAL_HOST: {scheme!r} is neither http nor https")
    hostport, slash, path = rest.partition("/")
    host, port = _split(hostport)
    return Address(scheme or "http", host, _port(port, DEFAULT_PORTS[scheme]), f"{slash}{path}".rstrip("/"))


def _split(hostport: str) -> tuple[str, str]:
    """Host without brackets, and the port's text."""
    if hostport.startswith("["):
        host, _, rest = hostport[1:].partition("]")
        return host, rest.removeprefix(":")
    if hostport.count(":") > 1:
        return hostport, ""
    host, colon, port = hostport.partition(":")
    return (host, port) if colon else (host or "127.0.0.1", "")


def _port(text: str, default: int) -> int:
    if not text:
        return default
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise CommandError(f"CORRAL_HOST: {text!r} is no port")
    return int(text)
