"""Which addresses a source may be on."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.node.downloads.addresses import AllowedHosts, allowed, is_public

NOT_PUBLIC = [
    "127.0.0.1",
    "127.8.9.1",
    "0.0.0.0",
    "10.1.2.3",
    "172.17.0.2",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "224.0.0.1",
    "255.255.255.255",
    "::1",
    "::",
    "fe80::1",
    "fe80::1%eth0",
    "fc00::1",
    "fd00:ec2::254",
    "fec0::1",
    "ff02::1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "2002:7f00:1::",
    "2001:0:1:2:3:4:80ff:fefe",
]


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_addresses_inside(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))
    assert allowed(AllowedHosts(), "files.example", [address]) == []


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.216.34", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"])
def test_addresses_of_the_internet(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))
    assert allowed(AllowedHosts(), "files.example", [address]) == [address]


@given(st.ip_addresses())
def test_every_address_is_inside_or_outside(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    if is_public(address):
        assert not any([address.is_loopback, address.is_link_local, address.is_multicast])
        assert address.version == 6 or not address.is_private


def test_what_an_operator_allows() -> None:
    hosts = AllowedHosts.parse("files.lan, 10.0.0.0/8,fd00::/8 ,127.0.0.1")
    assert allowed(hosts, "FILES.lan", ["192.168.1.1"]) == ["192.168.1.1"]
    assert allowed(hosts, "other.lan", ["192.168.1.1", "10.1.1.1", "fd00::1", "127.0.0.1"]) == [
        "10.1.1.1",
        "fd00::1",
        "127.0.0.1",
    ]
    assert allowed(hosts, "files.lan.example", ["192.168.1.1"]) == []
    assert AllowedHosts.parse("") == AllowedHosts()


@pytest.mark.parametrize("text", ["10.0.0.1/8", "files.lan:80", "http://files.lan", "*", "a b"])
def test_what_is_no_host(text: str) -> None:
    with pytest.raises(ValueError, match="is no host name, address or network"):
        AllowedHosts.parse(text)
