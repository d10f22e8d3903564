"""Model listings, which need only the routes snapshot."""

from __future__ import annotations

from datetime import datetime

import httpx
import msgspec
from redis.asyncio import Redis

from services.protocol.messages import GenerateRequest, new_id
from services.protocol.names import ModelName
from services.protocol.prompts import TextPrompt
from services.protocol.queue import Queue
from services.protocol.routes import ReplicaRoute, Routes
from tests.conditions import eventually
from tests.doubles.worker import Worker
from tests.gateway.conftest import BASE, CHAT, routes_snapshot

DETAILS = {
    "parent_model": "",
    "format": "gguf",
    "family": "llama",
    "families": ["llama"],
    "parameter_size": "134.52M",
    "quantization_level": "Q4_1",
    "context_length": 8192,
    "embedding_length": 576,
}


async def test_root_and_version(shared_http: httpx.AsyncClient) -> None:
    response = await shared_http.get("/")
    assert (response.status_code, response.content) == (200, b"Ollama is running")
    assert response.headers["content-type"].startswith("text/plain")
    assert (await shared_http.head("/")).status_code == 200
    version = (await shared_http.get("/api/version")).json()
    assert version["version"].count(".") == version["corral"].count(".") == 2
    assert version["version"] == "0.13.2", "0.13.3 promises /v1/responses, 0.14.0 /v1/messages"
    assert (await shared_http.head("/api/version")).content == b""
    assert (await shared_http.head("/api/tags")).status_code == 200


async def test_ollamas_tags(shared_http: httpx.AsyncClient) -> None:
    newest, older = (await shared_http.get("/api/tags")).json()["models"]
    modified_at = newest.pop("modified_at")
    assert newest == {
        "name": "smollm2:135m",
        "model": "smollm2:135m",
        "size": 105_000_000,
        "digest": CHAT,
        "details": DETAILS,
        "capabilities": ["completion", "chat"],
    }
    assert datetime.fromisoformat(modified_at).timestamp() == 1_790_000_000.5
    assert older["name"] == "gemma3:latest"


async def test_openai_models(shared_http: httpx.AsyncClient) -> None:
    newest = {"id": "smollm2:135m", "object": "model", "created": 1_790_000_000, "owned_by": "library"}
    listed = (await shared_http.get("/v1/models")).json()
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["smollm2:135m", "gemma3:latest"]
    assert listed["data"][0] == newest
    assert (await shared_http.get("/v1/models/SmolLM2:135m")).json() == newest
    assert (await shared_http.get("/v1/models/library/smollm2:135m")).json() == newest


async def test_listings_without_models(http: httpx.AsyncClient, routes: Routes) -> None:
    await routes.publish(routes_snapshot(2, tags={}, versions={}, replicas=()))

    async def empty() -> bool:
        return bool((await http.get("/api/tags")).json() == {"models": []})

    await eventually(empty)
    assert (await http.get("/api/ps")).json() == {"models": []}
    assert (await http.get("/v1/models")).json() == {"object": "list", "data": []}


async def test_a_pinned_model_never_expires_in_ps(http: httpx.AsyncClient, routes: Routes, worker: Worker) -> None:
    pinned = ReplicaRoute("r1", CHAT, "node1", "ready", 200, 0, 4096, 8, pinned=True)
    await routes.publish(routes_snapshot(2, replicas=(pinned,)))

    async def years() -> float:
        (model,) = (await http.get("/api/ps")).json()["models"] or [{"expires_at": "2000-01-01T00:00:00Z"}]
        return (datetime.fromisoformat(model["expires_at"]) - datetime.now().astimezone()).days / 365

    async def long() -> bool:
        return await years() > 100

    await eventually(long)


async def test_ps_lists_loaded_models(http: httpx.AsyncClient, routes: Routes, redis: Redis, worker: Worker) -> None:
    replicas = (
        ReplicaRoute("r1", CHAT, "node2", "ready", 200, 20, 4096, 8),
        ReplicaRoute("r2", CHAT, "node1", "starting", 100, 10, 4096, 8),
        ReplicaRoute("r3", CHAT, "node1", "failed", 100, 10, 4096, 8),
        ReplicaRoute("r4", BASE, "node1", "ready", 50, 0, 2048, 8),
    )
    await routes.publish(routes_snapshot(2, replicas=replicas))
    queue = Queue(redis)
    await queue.touch(CHAT, keep_alive_ms=60_000)
    await queue.enqueue(GenerateRequest(new_id(), BASE, "g", "c", TextPrompt("")), cost=1, limit=9, keep_alive_ms=-1)

    async def both() -> list[dict[str, object]] | None:
        models: list[dict[str, object]] = (await http.get("/api/ps")).json()["models"]
        return models if len(models) == 2 else None

    forever, minute = await eventually(both)
    now = datetime.now().astimezone()
    assert (forever["name"], forever["queued"]) == ("gemma3:latest", 1)
    assert (datetime.fromisoformat(str(forever["expires_at"])) - now).days > 100 * 365
    left_s = (datetime.fromisoformat(str(minute.pop("expires_at"))) - now).total_seconds()
    assert 50 < left_s <= 60
    assert minute == {
        "name": "smollm2:135m",
        "model": "smollm2:135m",
        "size": 300,
        "digest": CHAT,
        "details": DETAILS,
        "size_vram": 30,
        "context_length": 4096,
        "nodes": ["node1", "node2"],
        "replicas": 2,
        "queued": 0,
    }


async def test_ps_lists_the_name_that_was_requested(http: httpx.AsyncClient, routes: Routes, echo: None) -> None:
    """If several tags name a version, the newest request decides, as long as its tag exists."""
    known = routes_snapshot(1).tags
    [plain] = [tag for tag in known.values() if tag.name == "smollm2:135m"]
    aliases = {
        ModelName.parse(name).key: msgspec.structs.replace(plain, name=name) for name in ("a-copy:latest", "z-copy:latest")
    }
    replicas = (ReplicaRoute("r1", CHAT, "node1", "ready", 200, 20, 4096, 8),)
    await routes.publish(routes_snapshot(2, tags=known | aliases, replicas=replicas))

    async def listed(name: str) -> None:
        async def named() -> bool:
            return [model["name"] for model in (await http.get("/api/ps")).json()["models"]] == [name]

        await eventually(named)

    await listed("a-copy:latest")
    cases = [
        ("z-copy", "z-copy:latest"),
        ("smollm2:135m", "smollm2:135m"),
        ("a-copy", "a-copy:latest"),
        ("Z-Copy:latest", "z-copy:latest"),
    ]
    for asked, name in cases:
        message = {"role": "user", "content": "Hi"}
        answer = await http.post("/api/chat", json={"model": asked, "stream": False, "messages": [message]})
        assert answer.status_code == 200
        await listed(name)
    del aliases[ModelName.parse("z-copy").key]
    await routes.publish(routes_snapshot(3, tags=known | aliases, replicas=replicas))
    await listed("a-copy:latest")
