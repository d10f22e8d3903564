"""The gateway's settings, read from the environment."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from services.gateway.config import Settings
from services.process.address import Address
from tests.addresses import BAD, GOOD


@pytest.mark.parametrize(("text", "host", "port"), GOOD)
def test_bind_address(text: str, host: str, port: int) -> None:
    address = Address.parse(text)
    assert (address.host, address.port) == (host, port)


@pytest.mark.parametrize("text", BAD)
def test_an_invalid_address_is_refused(text: str) -> None:
    with pytest.raises(ValidationError, match="is not a port|is not an address|neither http nor https"):
        Settings(host=text, registry_token="x" * 16)


def test_ollamas_variables_are_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORRAL_REGISTRY_TOKEN", "x" * 16)
    monkeypatch.setenv("HOST", "not-mine")
    monkeypatch.setenv("OLLAMA_HOST", "0.0.0.0:1")
    monkeypatch.setenv("OLLAMA_ORIGINS", "https://a.example")
    monkeypatch.setenv("OLLAMA_MAX_QUEUE", "7")
    settings = Settings()
    assert (settings.bind.host, settings.bind.port) == ("0.0.0.0", 1)
    assert (settings.origins, settings.max_queue) == ("https://a.example", 7)
    monkeypatch.setenv("CORRAL_HOST", "127.0.0.1:2")
    monkeypatch.setenv("CORRAL_MAX_QUEUE", "8")
    settings = Settings()
    assert (settings.bind.host, settings.bind.port, settings.max_queue) == ("127.0.0.1", 2, 8)


def test_the_token_is_not_in_the_repr() -> None:
    assert "secret-of-16-chars" not in repr(Settings(registry_token="secret-of-16-chars"))
