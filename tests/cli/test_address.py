import pytest

from services.cli.address import parse_address
from services.cli.errors import CommandError
from tests.addresses import BAD, GOOD


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("127.0.0.1:11434", "http://127.0.0.1:11434"),
        ("", "http://127.0.0.1:11434"),
        ("example.org", "http://example.org:11434"),
        ("example.org:80", "http://example.org:80"),
        ("http://example.org", "http://example.org:80"),
        ("https://example.org", "https://example.org:443"),
        ("https://example.org:8443/corral/", "https://example.org:8443/corral"),
        (":8080", "http://127.0.0.1:8080"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("[::]:8080", "http://[::1]:8080"),
        ("::1", "http://[::1]:11434"),
        (" localhost ", "http://localhost:11434"),
    ],
)
def test_addresses_are_completed(text: str, url: str) -> None:
    assert parse_address(text).url == url


@pytest.mark.parametrize(("text", "host", "port"), GOOD)
def test_the_same_forms_as_the_gateway(text: str, host: str, port: int) -> None:
    address = parse_address(text)
    assert (address.host, address.port) == (host, port)


@pytest.mark.parametrize("text", ["127.0.0.1:0", *BAD])
def test_an_invalid_address_is_refused(text: str) -> None:
    with pytest.raises(CommandError, match="^CORRAL_HOST: "):
        parse_address(text)


@pytest.mark.parametrize(
    ("text", "loopback"),
    [
        ("127.0.0.1", True),
        ("localhost:1", True),
        ("[::1]:80", True),
        ("0.0.0.0", False),
        (":80", False),
        ("example.org", False),
    ],
)
def test_which_addresses_are_loopback(text: str, loopback: bool) -> None:
    assert parse_address(text).loopback is loopback
