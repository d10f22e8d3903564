"""Embeddings and reranking over HTTP: a gateway and real workers with the fake embedder."""

from __future__ import annotations

import asyncio
import base64
import math
import os
import sys
from array import array
from collections.abc import AsyncIterator
from typing import Any

import httpx
import ollama
import openai
import pytest
import pytest_asyncio
from redis.asyncio import Redis

from services.gateway.app import create_app
from services.protocol.connection import connect
from services.protocol.messages import Embedded, Finished, FinishReason, Started, Timings, Usage
from services.protocol.routes import Routes, TagRoute
from tests.conditions import eventually
from tests.doubles.registry import StandInRegistry
from tests.doubles.worker import Worker, working
from tests.gateway.conftest import BASE, CHAT, ready, routes_snapshot, settings_for, version_route
from tests.gateway.servers import serving

EMBED = "e" * 64
RANK = "d" * 64
DIMENSIONS = 16


def snapshot() -> Any:
    chat, base = version_route(CHAT, chats=True), version_route(BASE, chats=False)
    embed = version_route(EMBED, chats=False, capabilities=("embedding",))
    rank = version_route(RANK, chats=False, capabilities=("rerank",))
    shown = {"smollm2:135m": CHAT, "minilm:latest": EMBED, "ranker:latest": RANK}
    return routes_snapshot(
        tags={f"registry.ollama.ai/library/{name}": TagRoute(name, digest, 1.0) for name, digest in shown.items()},
        versions={CHAT: chat, BASE: base, EMBED: embed, RANK: rank},
    )


@pytest_asyncio.fixture(scope="module")
async def embedding_url(redis_url: str, registry_server: StandInRegistry) -> AsyncIterator[str]:
    """The URL of a gateway with a worker for each of the two models, on a separate Redis database."""
    database = redis_url.removesuffix("/0") + "/2"
    redis = connect(database)
    await Routes(redis).publish(snapshot())
    workers = [await start_worker(database, EMBED, "mean"), await start_worker(database, RANK, "rank")]
    async with serving(create_app(settings_for(database, registry_server))) as url:
        await ready(url)
        yield url
    for worker in workers:
        worker.kill()
        await worker.wait()
    await redis.aclose()


async def start_worker(redis_url: str, version: str, pooling: str) -> asyncio.subprocess.Process:
    settings = {"REDIS_URL": redis_url, "NODE": "here", "REPLICA": pooling, "VERSION": version, "RUNNER": "fake"}
    more = {"POOLING": pooling, "CONTEXT_TOKENS": "32", "ORPHAN_S": "3600"}
    environment = {f"CORRAL_{name}": value for name, value in (settings | more).items()}
    return await asyncio.create_subprocess_exec(sys.executable, "-m", "services.worker", env={**os.environ, **environment})


@pytest_asyncio.fixture
async def http(embedding_url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=embedding_url, timeout=30) as client:
        yield client


async def post(http: httpx.AsyncClient, path: str, **body: Any) -> Any:
    response = await http.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


async def refused(http: httpx.AsyncClient, path: str, **body: Any) -> tuple[int, str]:
    response = await http.post(path, json=body)
    error = response.json()["error"]
    return response.status_code, error["message"] if isinstance(error, dict) else error


def length(vector: list[float]) -> float:
    return math.hypot(*vector)


async def test_ollamas_embed(http: httpx.AsyncClient) -> None:
    answer = await post(http, "/api/embed", model="minilm", input=["one", "two"])
    assert list(answer) == ["model", "embeddings", "total_duration", "load_duration", "prompt_eval_count"]
    assert answer["model"] == "minilm"
    assert answer["prompt_eval_count"] == len("onetwo") + 4
    assert 0 < answer["load_duration"] <= answer["total_duration"]
    one, two = answer["embeddings"]
    assert len(one) == len(two) == DIMENSIONS
    assert [length(one), length(two)] == pytest.approx([1, 1])
    assert one != two
    (again,) = (await post(http, "/api/embed", model="MiniLM:latest", input="one"))["embeddings"]
    assert again == one


async def test_ollamas_embed_truncates_vectors_to_the_dimensions(http: httpx.AsyncClient) -> None:
    (whole,) = (await post(http, "/api/embed", model="minilm", input="one"))["embeddings"]
    (cut,) = (await post(http, "/api/embed", model="minilm", input="one", dimensions=3))["embeddings"]
    assert cut == pytest.approx([value / length(whole[:3]) for value in whole[:3]])
    for dimensions in (0, -1, 100, None):
        assert (await post(http, "/api/embed", model="minilm", input="one", dimensions=dimensions))["embeddings"] == [whole]


async def test_ollamas_embed_without_input_loads_the_model(http: httpx.AsyncClient) -> None:
    bodies: list[dict[str, Any]] = [{}, {"input": ""}, {"input": []}, {"input": None}, {"keep_alive": 0}]
    for body in bodies:
        assert await post(http, "/api/embed", model="minilm", **body) == {"model": "minilm", "embeddings": []}
    assert len((await post(http, "/api/embed", model="minilm", input=[""]))["embeddings"]) == 1


async def test_ollamas_older_route_does_not_normalize(http: httpx.AsyncClient) -> None:
    answer = await post(http, "/api/embeddings", model="minilm", prompt="one")
    assert list(answer) == ["embedding"]
    raw = answer["embedding"]
    assert length(raw) > 2
    (unit,) = (await post(http, "/api/embed", model="minilm", input="one"))["embeddings"]
    assert [value / length(raw) for value in raw] == pytest.approx(unit, abs=1e-6)
    for body in ({}, {"prompt": ""}, {"keep_alive": 0}):
        assert await post(http, "/api/embeddings", model="minilm", **body) == {"embedding": []}


async def test_openais_embeddings(http: httpx.AsyncClient) -> None:
    answer = await post(http, "/v1/embeddings", model="minilm", input=["one", "two"], user="me")
    assert list(answer) == ["object", "data", "model", "usage"]
    assert (answer["object"], answer["model"]) == ("list", "minilm")
    assert answer["usage"] == {"prompt_tokens": 10, "total_tokens": 10}
    assert [(entry["object"], entry["index"]) for entry in answer["data"]] == [("embedding", 0), ("embedding", 1)]
    of_ollama = (await post(http, "/api/embed", model="minilm", input=["one", "two"]))["embeddings"]
    assert [entry["embedding"] for entry in answer["data"]] == of_ollama


async def test_openais_base64_is_little_endian_float32(http: httpx.AsyncClient) -> None:
    plain = (await post(http, "/v1/embeddings", model="minilm", input="one"))["data"][0]["embedding"]
    packed = (await post(http, "/v1/embeddings", model="minilm", input="one", encoding_format="base64"))["data"][0]
    values = array("f", base64.b64decode(packed["embedding"]))
    if sys.byteorder == "big":
        values.byteswap()
    assert values.tolist() == plain


async def test_openais_inputs_may_be_token_ids(http: httpx.AsyncClient) -> None:
    framed = [256, *b"one", 257]
    by_text = (await post(http, "/v1/embeddings", model="minilm", input="one"))["data"][0]["embedding"]
    assert (await post(http, "/v1/embeddings", model="minilm", input=framed))["data"][0]["embedding"] == by_text
    answer = await post(http, "/v1/embeddings", model="minilm", input=[framed, "one", [1, 2]], dimensions=4)
    assert answer["usage"]["prompt_tokens"] == 12
    assert answer["data"][0]["embedding"] == answer["data"][1]["embedding"] != answer["data"][2]["embedding"]
    assert len(answer["data"][2]["embedding"]) == 4


async def test_a_long_input_is_truncated_or_refused(http: httpx.AsyncClient) -> None:
    long = "x" * 100
    assert (await post(http, "/api/embed", model="minilm", input=long))["prompt_eval_count"] == 32
    assert (await post(http, "/v1/embeddings", model="minilm", input=long))["usage"]["prompt_tokens"] == 32
    assert (await post(http, "/api/embeddings", model="minilm", prompt=long))["embedding"]
    status, message = await refused(http, "/api/embed", model="minilm", input=["short", long], truncate=False)
    assert (status, message.partition(":")[0]) == (400, "the input length exceeds the context length")


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/api/embed", {"model": "x", "input": "a"}, 404, 'model "x" not found, try pulling it first'),
        ("/api/embeddings", {"model": "x", "prompt": "a"}, 404, 'model "x" not found, try pulling it first'),
        ("/v1/embeddings", {"model": "x", "input": "a"}, 404, 'model "x" not found, try pulling it first'),
        ("/v1/rerank", {"model": "x", "query": "a"}, 404, 'model "x" not found, try pulling it first'),
        ("/api/embed", {"input": "a"}, 404, 'model "" not found, try pulling it first'),
        ("/api/embed", {"model": "minilm", "input": [1]}, 400, "invalid input type"),
        ("/api/embed", {"model": "minilm", "input": {"a": 1}}, 400, "invalid input type"),
        ("/api/embed", {"model": "smollm2:135m", "input": "a"}, 400, '"smollm2:135m" does not support embedding'),
        ("/v1/embeddings", {"model": "ranker", "input": "a"}, 400, '"ranker" does not support embedding'),
        ("/v1/embeddings", {"model": "minilm"}, 400, "invalid input"),
        ("/v1/embeddings", {"model": "minilm", "input": []}, 400, "invalid input"),
        ("/v1/embeddings", {"model": "minilm", "input": {}}, 400, "invalid input type"),
        ("/v1/embeddings", {"model": "minilm", "input": ["a", 1]}, 400, "invalid input type"),
        ("/v1/embeddings", {"model": "minilm", "input": [1, True]}, 400, "input: expected token ids"),
        ("/v1/embeddings", {"model": "minilm", "input": [[]]}, 400, "input: an array of tokens is empty"),
        ("/v1/embeddings", {"model": "minilm", "input": [-1]}, 400, "input: contains a number that is not a token id"),
        ("/v1/embeddings", {"model": "minilm", "input": [2**70]}, 400, "input: contains a number that is not a token id"),
        ("/v1/embeddings", {"model": "minilm", "input": [258]}, 400, "input: contains token ids that the model does not have"),
        (
            "/v1/embeddings",
            {"model": "minilm", "input": "a", "encoding_format": "hex"},
            400,
            "Invalid value for 'encoding_format' = hex. Supported values: ['float', 'base64'].",
        ),
        ("/v1/rerank", {"model": "minilm", "query": "a", "documents": ["b"]}, 400, '"minilm" does not support rerank'),
        ("/v1/rerank", {"model": "ranker", "documents": ["b"]}, 400, "query: is required"),
        ("/api/rerank", {"model": "ranker", "query": "a"}, 400, "documents: at least one is required"),
        ("/api/rerank", {"model": "ranker", "query": "a", "documents": []}, 400, "documents: at least one is required"),
    ],
)
async def test_invalid_requests_are_refused(
    http: httpx.AsyncClient, path: str, body: dict[str, Any], status: int, message: str
) -> None:
    assert await refused(http, path, **body) == (status, message)


async def test_an_embedding_model_does_not_generate(http: httpx.AsyncClient) -> None:
    assert await refused(http, "/api/generate", model="minilm", prompt="a") == (400, '"minilm" does not support generate')
    messages = [{"role": "user", "content": "a"}]
    assert await refused(http, "/v1/chat/completions", model="minilm", messages=messages) == (
        400,
        '"minilm" does not support chat',
    )


async def test_rerank_sorts_by_score(http: httpx.AsyncClient) -> None:
    # The fake's score is the number of distinct bytes.
    documents = ["a", "abcdef", {"text": "abc"}, "aa"]
    answer = await post(http, "/v1/rerank", model="ranker", query="a", documents=documents)
    assert list(answer) == ["id", "object", "model", "results", "usage"]
    assert [(result["index"], result["relevance_score"]) for result in answer["results"]] == [(1, 6), (2, 3), (0, 1), (3, 1)]
    assert answer["usage"]["prompt_tokens"] == sum(4 + n for n in (1, 6, 3, 2))
    assert "document" not in answer["results"][0]
    best = await post(http, "/v1/rerank", model="ranker", query="a", documents=documents, top_n=2, return_documents=True)
    assert best["results"] == [
        {"index": 1, "relevance_score": 6, "document": {"text": "abcdef"}},
        {"index": 2, "relevance_score": 3, "document": {"text": "abc"}},
    ]


async def test_rerank_on_ollamas_route(http: httpx.AsyncClient) -> None:
    answer = await post(http, "/api/rerank", model="ranker", query="a", documents=["b", "bcd"], top_n=0)
    assert list(answer) == ["model", "results", "total_duration", "load_duration", "prompt_eval_count"]
    assert [result["index"] for result in answer["results"]] == [1, 0]
    too_long = {"model": "ranker", "query": "a", "documents": ["x" * 100]}
    assert len((await post(http, "/api/rerank", **too_long))["results"]) == 1
    status, message = await refused(http, "/api/rerank", **too_long, truncate=False)
    assert (status, message.partition(":")[0]) == (400, "the input length exceeds the context length")


async def test_the_real_clients_embed(embedding_url: str) -> None:
    async with openai.AsyncOpenAI(base_url=f"{embedding_url}/v1", api_key="none", max_retries=0) as client:
        by_openai = await client.embeddings.create(model="minilm", input=["one", "two"], dimensions=8)
    async with ollama.AsyncClient(host=embedding_url) as other:
        by_ollama = await other.embed("minilm", ["one", "two"], dimensions=8)
        older = await other.embeddings("minilm", "one")
    assert [len(entry.embedding) for entry in by_openai.data] == [8, 8]
    for entry, vector in zip(by_openai.data, by_ollama.embeddings, strict=True):
        assert list(entry.embedding) == pytest.approx(list(vector))
    assert len(older.embedding) == DIMENSIONS


async def test_many_inputs_come_back_in_order(http: httpx.AsyncClient) -> None:
    texts = [f"text {number}" for number in range(300)]
    together = (await post(http, "/v1/embeddings", model="minilm", input=texts))["data"]
    assert [entry["index"] for entry in together] == list(range(300))
    for number in (0, 150, 299):
        alone = (await post(http, "/v1/embeddings", model="minilm", input=texts[number]))["data"][0]
        assert alone["embedding"] == together[number]["embedding"]


@pytest.mark.parametrize("path", ["/api/embed", "/v1/embeddings"])
async def test_inputs_of_a_lost_worker_are_computed_again(redis: Redis, settings: Any, path: str) -> None:
    """The remaining vectors may arrive in any order."""
    await Routes(redis).publish(snapshot())

    def vector(*values: float) -> bytes:
        return array("f", values).tobytes()

    async def claim(worker: Worker) -> tuple[str, str, int]:
        answer = await worker.take()
        return answer.request.gateway, answer.request.id, answer.epoch

    async with (
        serving(create_app(settings)) as url,
        httpx.AsyncClient(base_url=url, timeout=20) as http,
        asyncio.TaskGroup() as tasks,
    ):
        await ready(url)
        async with working(redis, EMBED) as first:
            asked = tasks.create_task(post(http, path, model="minilm", input=["one", "two"]))
            gateway, request, epoch = await claim(first)
            await first.publish(gateway, Started(request, epoch, 0, 4, 0), Embedded(request, epoch, 1, 1, vector(9.0)))
            await first.die()
        async with working(redis, EMBED) as second:
            gateway, request, epoch = await claim(second)
            usage, timings = Usage(4, 0, 0), Timings(1, 0)
            await second.publish(
                gateway,
                Started(request, epoch, 0, 4, 0),
                Embedded(request, epoch, 1, 1, vector(2.0)),
                Embedded(request, epoch, 2, 0, vector(1.0)),
                Finished(request, epoch, 3, (FinishReason.STOP,), usage, timings),
            )
            answer = await asked
    vectors = answer["embeddings"] if path == "/api/embed" else [entry["embedding"] for entry in answer["data"]]
    assert vectors == [[1.0], [2.0]]


async def test_a_disconnected_client_cancels_its_request(redis: Redis, settings: Any) -> None:
    await Routes(redis).publish(snapshot())
    async with serving(create_app(settings)) as url, httpx.AsyncClient(base_url=url) as http, working(redis, EMBED) as worker:
        await ready(url)
        asking = asyncio.create_task(http.post("/api/embed", json={"model": "minilm", "input": "one"}, timeout=20))
        answer = await worker.take()
        asking.cancel()
        await eventually(lambda: worker.cancelled == [answer.request.id])
