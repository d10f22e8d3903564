"""Browsers: which origins may call, and which Host headers are allowed."""

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
def test_allowed_origins(origin: str) -> None:
    policy = OriginPolicy(["https://chat.team.example", " https://*.dev.example "])
    assert policy.allows(origin, host="10.0.0.7:11434")


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "null", "http://localhost.evil.example", "https://dev.example", "chrome-extension://abc", ""],
)
def test_refused_origins(origin: str) -> None:
    assert not OriginPolicy(["https://*.dev.example", ""]).allows(origin, host="10.0.0.7:11434")


def test_a_wildcard_allows_every_origin() -> None:
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
def test_which_hosts_are_local(host: str) -> None:
    assert local_host(host)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:11434", "localhost.evil.example", "8.8.8.8", "notlocal"])
def test_which_hosts_are_not_local(host: str) -> None:
    assert not local_host(host)


async def test_origins_and_hosts_are_checked_over_http(shared_http: httpx.AsyncClient) -> None:
    local = {"Origin": "http://localhost:3000"}
    response = await shared_http.get("/api/tags", headers=local)
    assert response.headers["access-control-allow-origin"] == "http://localhost:3000"
    assert response.headers["vary"] == "Origin"
    assert (await shared_http.get("/nowhere", headers=local)).headers["access-control-allow-origin"] == "http://localhost:3000"

    response = await shared_http.get("/api/tags", headers={"Origin": "https://evil.example"})
    assert (response.status_code, response.content) == (403, b"")
    assert "access-control-allow-origin" not in response.headers

    assert (await shared_http.get("/api/tags")).headers.get("access-control-allow-origin") is None
    rebound = await shared_http.get("/api/tags", headers={"Host": "evil.example"})
    assert (rebound.status_code, rebound.content) == (403, b"")


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD"])
async def test_a_preflight_allows_the_requested_headers(shared_http: httpx.AsyncClient, method: str) -> None:
    names = (
        "authorization,openai-organization,traceparent,x-priority,x-queue-updates,x-request-timeout,x-stainless-os,x-anything"
    )
    asked = {"Access-Control-Request-Method": method, "Access-Control-Request-Headers": names}
    preflight = await shared_http.options("/v1/chat/completions", headers=asked | {"Origin": "http://localhost:3000"})
    assert (preflight.status_code, preflight.content) == (204, b"")
    assert preflight.headers["access-control-allow-origin"] == "http://localhost:3000"
    assert preflight.headers["access-control-allow-methods"] == method
    assert preflight.headers["access-control-allow-headers"] == names
    assert {"Origin", "Access-Control-Request-Headers"} <= set(preflight.headers["vary"].split(", "))

    refused = await shared_http.options("/v1/chat/completions", headers=asked | {"Origin": "https://evil.example"})
    assert (refused.status_code, refused.content) == (403, b"")
    assert not any(name.startswith("access-control-") for name in refused.headers)


@pytest.mark.parametrize(("method", "path"), [("GET", "/api/tags"), ("POST", "/v1/chat/completions"), ("GET", "/nowhere")])
async def test_browsers_may_read_every_header_of_ours(shared_http: httpx.AsyncClient, method: str, path: str) -> None:
    response = await shared_http.request(method, path, headers={"Origin": "http://localhost:3000"})
    exposed = {name.lower() for name in response.headers["access-control-expose-headers"].split(", ")}
    assert {"x-request-id", "x-queue-position", "x-queue-estimated-wait", "retry-after"} <= exposed
    assert "Origin" in response.headers["vary"]
