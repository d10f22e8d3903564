"""The queue over HTTP: refusals, deadlines, priorities, and the reported positions."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from services.gateway.app import create_app
from services.gateway.config import Settings
from services.protocol.queue import Queue
from services.protocol.routes import Caller, Routes, key_hash
from services.protocol.waiting import Priority
from tests.conditions import eventually
from tests.doubles.worker import Worker, echoing
from tests.gateway.conftest import ADMIN_KEY, CHAT, USER_KEY, ready, routes_snapshot
from tests.gateway.servers import serving

OLLAMA = "/api/chat"
OPENAI = "/v1/chat/completions"


def chat(text: str = "Hi", **fields: Any) -> dict[str, Any]:
    return {"model": "smollm2:135m", "messages": [{"role": "user", "content": text}], **fields}


def with_key(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@asynccontextmanager
async def gateway(settings: Settings, **changes: Any) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(create_app(settings.model_copy(update=changes))) as url:
        await ready(url)
        async with httpx.AsyncClient(base_url=url, timeout=20) as client:
            yield client


@asynccontextmanager
async def asked(
    http: httpx.AsyncClient, redis: Redis, *requests: dict[str, Any]
) -> AsyncIterator[list[asyncio.Task[httpx.Response]]]:
    """Chats that wait in the queue, in the order of `requests`."""
    tasks: list[asyncio.Task[httpx.Response]] = []
    try:
        for request in requests:
            before = await depth(redis)
            tasks.append(asyncio.create_task(http.post(**{"url": OLLAMA, "json": chat(stream=False)} | request)))

            async def waits(before: int = before) -> bool:
                return await depth(redis) > before

            await eventually(waits)
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def depth(redis: Redis) -> int:
    return sum(sum(found.waiting.values()) for found in await Queue(redis).depths())


class TestShares:
    async def test_a_key_over_its_share_gets_429_in_each_dialect(
        self, settings: Settings, routes: Routes, redis: Redis
    ) -> None:
        user = with_key(USER_KEY)
        async with gateway(settings, max_queue=4) as http, asked(http, redis, {"headers": user}):
            refused = await http.post(OLLAMA, json=chat(), headers=user)
            assert refused.status_code == 429
            assert set(refused.json()) == {"error"}
            assert int(refused.headers["retry-after"]) >= 1
            refused = await http.post(OPENAI, json=chat(), headers=user)
            assert refused.status_code == 429
            error = refused.json()["error"]
            assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limited")
            async with asked(http, redis, {"headers": with_key(ADMIN_KEY)}, {}, {}):
                full = await http.post(OLLAMA, json=chat())
                assert full.status_code == 503
                assert full.json() == {"error": "server busy, please try again.  maximum pending requests exceeded"}
                assert int(full.headers["retry-after"]) >= 1


class TestDeadlines:
    @pytest.mark.parametrize("stream", [False, True])
    async def test_a_request_that_cannot_start_in_time_gets_504(
        self, http: httpx.AsyncClient, redis: Redis, stream: bool
    ) -> None:
        soon = {"x-request-timeout": "0.05"}
        late = await http.post(OLLAMA, json=chat(stream=stream), headers=soon)
        assert (late.status_code, set(late.json())) == (504, {"error"})
        late = await http.post(OPENAI, json=chat(stream=stream), headers=soon)
        assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_exceeded")
        assert await depth(redis) == 0

    async def test_the_settings_limit_the_wait(self, settings: Settings, routes: Routes) -> None:
        async with gateway(settings, request_timeout_s=0.05) as http:
            assert (await http.post(OLLAMA, json=chat())).status_code == 504

    async def test_a_started_request_has_no_deadline(self, http: httpx.AsyncClient, worker: Worker) -> None:
        response = asyncio.create_task(http.post(OLLAMA, json=chat(stream=False), headers={"x-request-timeout": "0.2"}))
        answer = await worker.take()
        await answer.started()
        unserved = {"model": "gemma3", "prompt": "Hi"}
        later = await http.post("/api/generate", json=unserved, headers={"x-request-timeout": "0.3"})
        assert later.status_code == 504, "by now the deadline of the first is over too"
        await answer.frame("Hello")
        await answer.finished()
        assert (await response).json()["message"]["content"] == "Hello"

    async def test_an_invalid_timeout_header_is_refused(self, http: httpx.AsyncClient) -> None:
        refused = await http.post(OPENAI, json=chat(), headers={"x-request-timeout": "soon"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_request")


class TestPriorities:
    @pytest.mark.parametrize(
        "urgent",
        [
            {"headers": {"x-priority": "interactive"}},
            {"url": OPENAI, "json": chat(priority=-1)},
            {"url": OPENAI, "json": chat(service_tier="priority")},
        ],
        ids=["header", "priority", "service_tier"],
    )
    async def test_the_more_urgent_request_goes_first(
        self, http: httpx.AsyncClient, redis: Redis, urgent: dict[str, Any]
    ) -> None:
        later = {"url": OPENAI, "json": chat("later", service_tier="flex")}
        async with asked(http, redis, later, {}, urgent):
            [found] = await Queue(redis).depths()
            assert found.waiting == {Priority.INTERACTIVE: 1, Priority.NORMAL: 1, Priority.BATCH: 1}

    async def test_a_request_is_not_more_urgent_than_its_key_allows(
        self, http: httpx.AsyncClient, redis: Redis, routes: Routes
    ) -> None:
        key = "corral-" + "B" * 43
        caller = Caller("k3", "nightly", "", admin=False, priority=Priority.BATCH)
        await routes.publish(routes_snapshot(2, callers={key_hash(key): caller}))

        async def known() -> bool:
            return (await http.get("/api/tags", headers=with_key(key))).status_code == 200

        await eventually(known)
        async with asked(http, redis, {"headers": with_key(key) | {"x-priority": "interactive"}}):
            [found] = await Queue(redis).depths()
            assert found.waiting[Priority.BATCH] == 1


class TestHeaders:
    async def test_give_the_position_in_the_queue(self, http: httpx.AsyncClient, redis: Redis, routes: Routes) -> None:
        async with asked(http, redis, {}, {"json": chat(stream=True)}) as (first, second), echoing(redis, CHAT):
            assert (await first).headers["x-queue-position"] == "1"
            assert (await second).headers["x-queue-position"] == "2"
            straight = await http.post(OLLAMA, json=chat())
            assert straight.headers["x-queue-position"] == "0"
            assert straight.headers["x-queue-estimated-wait"] == "0.0"


class TestUpdates:
    async def test_an_openai_stream_reports_its_position(self, http: httpx.AsyncClient, redis: Redis, routes: Routes) -> None:
        updates = {"x-queue-updates": "true"}
        async with asked(http, redis, {}), http.stream("POST", OPENAI, json=chat(stream=True), headers=updates) as response:
            lines = response.aiter_lines()
            assert response.headers["x-queue-position"] == "2"
            assert await anext(lines) == ": queue position 2"
            async with echoing(redis, CHAT):
                rest = [line async for line in lines if line]
        events = [line for line in rest if not line.startswith(": queue position ")]
        assert events[0].startswith("data: {")
        assert events[-1] == "data: [DONE]"

    async def test_an_error_after_an_update_is_an_event(self, http: httpx.AsyncClient) -> None:
        headers = {"x-queue-updates": "true", "x-request-timeout": "0.05"}
        late = await http.post(OPENAI, json=chat(stream=True), headers=headers)
        assert late.status_code == 200
        assert '"code":"deadline_exceeded"' in late.text

    async def test_an_ollama_stream_reports_its_position(self, http: httpx.AsyncClient, redis: Redis, routes: Routes) -> None:
        updates = {"x-queue-updates": "true"}
        async with asked(http, redis, {}), http.stream("POST", OLLAMA, json=chat(stream=True), headers=updates) as response:
            lines = response.aiter_lines()
            assert json.loads(await anext(lines)) == {"queue_position": 2, "done": False}
            async with echoing(redis, CHAT):
                rest = [json.loads(line) async for line in lines]
        answer = [line for line in rest if "queue_position" not in line]
        assert answer[0]["message"]["role"] == "assistant"
        assert answer[-1]["done"]

    async def test_a_whole_answer_reports_no_position(self, http: httpx.AsyncClient) -> None:
        headers = {"x-queue-updates": "true", "x-request-timeout": "0.05"}
        assert (await http.post(OPENAI, json=chat(), headers=headers)).status_code == 504
        assert (await http.post(OLLAMA, json=chat(stream=False), headers=headers)).status_code == 504


class TestListing:
    async def test_administrators_see_which_callers_wait(self, http: httpx.AsyncClient, redis: Redis, worker: Worker) -> None:
        await worker.report(running=3)
        await worker.die()
        ada, bob = {"headers": with_key(ADMIN_KEY)}, {"headers": with_key(USER_KEY) | {"x-priority": "batch"}}
        async with asked(http, redis, ada, bob, bob):
            [model] = (await http.get("/api/queue", headers=with_key(ADMIN_KEY))).json()["models"]
            assert (model["model"], model["digest"], model["waiting"]) == ("smollm2:135m", CHAT, 3)
            assert model["by_priority"] == {"interactive": 0, "normal": 1, "batch": 2}
            assert model["callers"] == [{"caller": "bob", "waiting": 2}, {"caller": "ada", "waiting": 1}]
            assert 0 <= model["oldest_wait_s"] < 20
            assert model["drained_per_second"] is None
            [model] = (await http.get("/api/queue", headers=with_key(USER_KEY))).json()["models"]
            assert (model["waiting"], model["callers"]) == (3, [{"caller": "bob", "waiting": 2}])

    async def test_running_requests_are_counted(self, http: httpx.AsyncClient, redis: Redis, worker: Worker) -> None:
        await worker.report(running=3)
        await Queue(redis).touch(CHAT, keep_alive_ms=None)
        [model] = (await http.get("/api/queue")).json()["models"]
        assert (model["waiting"], model["running"], model["slots"]) == (0, 3, 8)

    async def test_needs_a_valid_key(self, http: httpx.AsyncClient) -> None:
        assert (await http.get("/api/queue", headers=with_key("corral-" + "X" * 43))).status_code == 401
