"""Browsers: whose pages may call, and which Host they may name."""

from __future__ import annotations

import httpx
import pytest

from services.gateway.origins import OriginPolicy, local_host


@pytest.mark.parametrize(
    "origin",
    [
        "http://localhost",
        "https://localhost:3000",
        "http://127.0.0.1:8080",
        "http://0.0.0.0",
        "app://obsidian.md",
        "tauri://localhost",
        "vscode-webview://abc",
        "https://chat.team.example",
        "https://a.dev.example",
        "http://10.0.0.7:11434",
    ],
)
def test_allowed(origin: str) -> None:
    policy = OriginPolicy(["https://chat.team.example", " https://*.dev.example "])
    assert policy.allows(origin, host="10.0.0.7:11434")


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "null", "http://localhost.evil.example", "https://dev.example", "chrome-extension://abc", ""],
)
def test_refused(origin: str) -> None:
    assert not OriginPolicy(["https://*.dev.example", ""]).allows(origin, host="10.0.0.7:11434")


def test_everybody() -> None:
    assert OriginPolicy(["*"]).allows("https://evil.example", host="x")


@pytest.mark.parametrize(
    "host",
    [
        "",
        "localhost",
        "localhost:11434",
        "127.0.0.1:80",
        "[::1]:80",
        "::1",
        "10.1.2.3",
        "0.0.0.0",
        "ai.localhost",
        "box.local:1",
        "x.internal",
    ],
)
def test_local_hosts(host: str) -> None:
    assert local_host(host)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:11434", "localhost.evil.example", "8.8.8.8", "notlocal"])
def test_foreign_hosts(host: str) -> None:
    assert not local_host(host)


async def test_over_http(standing: httpx.AsyncClient) -> None:
    local = {"Origin": "http://localhost:3000"}
    response = await standing.get("/api/tags", headers=local)
    assert response.headers["access-control-allow-origin"] == "http://localhost:3000"
    assert response.headers["vary"] == "Origin"
    assert (await standing.get("/nowhere", headers=local)).headers["access-control-allow-origin"] == "http://localhost:3000"

    response = await standing.get("/api/tags", headers={"Origin": "https://evil.example"})
    assert (response.status_code, response.content) == (403, b"")
    assert "access-control-allow-origin" not in response.headers

    preflight = await standing.options(
        "/api/chat", headers=local | {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key"}
    )
    assert (preflight.status_code, preflight.content) == (204, b"")
    assert "POST" in preflight.headers["access-control-allow-methods"]
    allowed = {name.strip().lower() for name in preflight.headers["access-control-allow-headers"].split(",")}
    assert {"authorization", "content-type", "x-api-key", "x-stainless-retry-count"} <= allowed

    rebound = await standing.get("/api/tags", headers={"Host": "evil.example"})
    assert (rebound.status_code, rebound.content) == (403, b"")
