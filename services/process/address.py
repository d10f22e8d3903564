"""The address of a gateway, in OLLAMA_HOST's format."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 11434

#: Spaces, and quotes, which an .env file may leave in the value.
_SURROUNDING = " \t\r\n\"'"
_SCHEME_PORTS = {"": DEFAULT_PORT, "http": 80, "https": 443}


@dataclass(frozen=True)
class Address:
    """An empty `host` means every interface. `path` is empty or starts with `/`. `port` 0 lets the system choose one."""

    scheme: str
    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, text: str) -> Address:
        """Parses `[scheme://]host[:port][/path]`, of which every part is optional. Raises ValueError."""
        scheme, separator, rest = text.strip(_SURROUNDING).rpartition("://")
        scheme = scheme.lower()
        if scheme not in _SCHEME_PORTS or (separator and not scheme):
            raise ValueError(f"{scheme!r} is neither http nor https")
        authority, slash, path = rest.partition("/")
        host, port = _split(authority)
        return cls(scheme or "http", host, _port(port, _SCHEME_PORTS[scheme]), f"{slash}{path}".rstrip("/"))

    @property
    def reachable_host(self) -> str:
        """The host that a client connects to: loopback if `host` means every interface."""
        return {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)

    @property
    def url(self) -> str:
        host = f"[{self.reachable_host}]" if ":" in self.reachable_host else self.reachable_host
        return f"{self.scheme}://{host}:{self.port}{self.path}"

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the address."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def _split(authority: str) -> tuple[str, str]:
    """The host without brackets, and the port as text."""
    if authority.startswith("["):
        host, bracket, rest = authority[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError(f"{authority!r} is not an address; write it like [::1]:{DEFAULT_PORT}")
        return host, rest.removeprefix(":")
    if authority.count(":") > 1:  # a bare IPv6 address
        return authority, ""
    host, colon, port = authority.partition(":")
    return (host, port) if colon else (host or DEFAULT_HOST, "")


def _port(text: str, default: int) -> int:
    if not text:
        return default
    if not text.isdecimal() or int(text) > 65535:
        raise ValueError(f"{text!r} is not a port; write it like 127.0.0.1:{DEFAULT_PORT}")
    return int(text)
