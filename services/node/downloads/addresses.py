"""Which addresses a source may be on. Pure.

A source is a URL that a user gives to a machine inside the network. Public addresses are allowed; others (this machine, the
local network, the metadata service of a cloud) only if the operator lists them.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import NamedTuple, Self

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class AllowedHosts(NamedTuple):
    """Hosts that sources may be on although their addresses are not public: by name, or by network."""

    names: frozenset[str] = frozenset()
    networks: tuple[Network, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parses a comma-separated list of host names, addresses and networks. Raises ValueError if an entry is none of these."""
        names: set[str] = set()
        networks: list[Network] = []
        for entry in filter(None, (entry.strip() for entry in text.split(","))):
            try:
                networks.append(ipaddress.ip_network(entry))
            except ValueError:
                if not set(entry.lower()) <= set("abcdefghijklmnopqrstuvwxyz0123456789.-_"):
                    raise ValueError(f"{entry!r} is no host name, address or network such as 10.0.0.0/8") from None
                names.add(entry.lower())
        return cls(frozenset(names), tuple(networks))

    def allow(self, host: str, address: Address) -> bool:
        """Whether a source may be on `host`, which has this address."""
        return is_public(address) or host.lower() in self.names or any(address in network for network in self.networks)


def allowed(hosts: AllowedHosts, host: str, addresses: Iterable[str]) -> list[str]:
    """The addresses of `host` that may be connected to, in their order."""
    return [address for address in addresses if hosts.allow(host, ipaddress.ip_address(address))]


def is_public(address: Address) -> bool:
    """Whether the address is one of the public internet. An IPv6 address that stands for an IPv4 address counts as that."""
    if isinstance(address, ipaddress.IPv6Address):
        embedded = _embedded(address)
        if embedded is not None:
            return is_public(embedded)
        if address.is_site_local:
            return False
    return address.is_global and not address.is_multicast


def _embedded(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour
