"""Redis's memory is full during every kind of request: running answers continue, and new requests are refused until there is
memory again."""

from __future__ import annotations

import httpx

from tests.conditions import eventually
from tests.faults.cluster import Cluster
from tests.faults.conftest import Results, ask_everything
from tests.valkey import full_memory

FULL = "the queue's memory is full"


async def test_running_answers_continue_while_the_memory_is_full(
    cluster: Cluster, http: httpx.AsyncClient, undisturbed: Results
) -> None:
    disturbance = await ask_everything(cluster, http)
    await disturbance.reached(2)
    async with full_memory(cluster.redis):
        chat = {"model": "fake", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
        refused = {path: await http.post(path, json=body) for path, body in bodies(chat).items()}
        assert {path: answer.status_code for path, answer in refused.items()} == dict.fromkeys(refused, 503)
        assert refused["/v1/chat/completions"].json()["error"]["message"] == FULL
        assert refused["/v1/chat/completions"].json()["error"]["code"] == "queue_memory_full"
        assert refused["/api/chat"].json() == refused["/api/generate"].json() == {"error": FULL}
        assert all(answer.headers["retry-after"] == "10" for answer in refused.values())
        assert await disturbance.results() == undisturbed
        assert (await http.get("/readyz")).status_code == 200
    assert (await http.post("/v1/chat/completions", json=chat)).status_code == 200
    await http.aclose()
    await eventually(cluster.is_clean)


def bodies(chat: dict[str, object]) -> dict[str, dict[str, object]]:
    return {
        "/v1/chat/completions": chat,
        "/v1/completions": {"model": "fake", "prompt": "Hi"},
        "/api/chat": {**chat, "stream": False},
        "/api/generate": {"model": "fake", "prompt": "Hi"},
        "/v1/embeddings": {"model": "vectors", "input": "Hi"},
        "/api/embed": {"model": "vectors", "input": "Hi"},
    }
