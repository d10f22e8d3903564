"""Settings as they come from the environment."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from services.gateway.config import BindAddress, Settings


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("", "127.0.0.1", 11434),
        ("0.0.0.0", "0.0.0.0", 11434),
        ("0.0.0.0:80", "0.0.0.0", 80),
        (":8080", "", 8080),
        ("example.com", "example.com", 11434),
        ("example.com:1234", "example.com", 1234),
        ("http://1.2.3.4", "1.2.3.4", 80),
        ("https://1.2.3.4", "1.2.3.4", 443),
        ("http://1.2.3.4:5/path/", "1.2.3.4", 5),
        ("[::1]", "::1", 11434),
        ("[::1]:7", "::1", 7),
        ("::1", "::1", 11434),
        ("http://[::]:9", "::", 9),
        (' "127.0.0.1:1" ', "127.0.0.1", 1),
    ],
)
def test_bind_address(text: str, host: str, port: int) -> None:
    assert BindAddress.parse(text) == BindAddress(host, port)


@pytest.mark.parametrize("text", ["127.0.0.1:http", "127.0.0.1:70000", "[::1]:x"])
def test_no_port(text: str) -> None:
    with pytest.raises(ValidationError, match="is no port"):
        Settings(host=text, registry_token="x" * 16)  # type: ignore[arg-type]


def test_ollamas_variables_count_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORRAL_REGISTRY_TOKEN", "x" * 16)
    monkeypatch.setenv("HOST", "not-mine")
    monkeypatch.setenv("OLLAMA_HOST", "0.0.0.0:1")
    monkeypatch.setenv("OLLAMA_ORIGINS", "https://a.example")
    monkeypatch.setenv("OLLAMA_MAX_QUEUE", "7")
    settings = Settings()
    assert (settings.bind, settings.origins, settings.max_queue) == (BindAddress("0.0.0.0", 1), "https://a.example", 7)
    monkeypatch.setenv("CORRAL_HOST", "127.0.0.1:2")
    monkeypatch.setenv("CORRAL_MAX_QUEUE", "8")
    settings = Settings()
    assert (settings.bind, settings.max_queue) == (BindAddress("127.0.0.1", 2), 8)


def test_the_token_is_not_shown() -> None:
    assert "secret-of-16-chars" not in repr(Settings(registry_token="secret-of-16-chars"))  # type: ignore[arg-type]
