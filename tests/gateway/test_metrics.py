"""The gateway's metrics, as Prometheus scrapes them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpx
import pytest
import pytest_asyncio
from redis.asyncio import Redis

from services.gateway.app import create_app
from services.gateway.config import Settings
from services.gateway.metrics import Metrics
from services.protocol.routes import Caller, Routes, key_hash
from services.telemetry.exposition import Exposition
from services.telemetry.telemetry import Telemetry
from tests.conditions import eventually
from tests.doubles.worker import Answer, Worker, working
from tests.gateway.conftest import CHAT, USER_KEY, ready, routes_snapshot
from tests.gateway.servers import serving
from tests.scraping import Scrape, scrape

ASKED = {"model": "smollm2:135m", "messages": [{"role": "user", "content": "hi"}], "stream": True}
MODEL = "smollm2:135m"


@dataclass
class Watched:
    http: httpx.AsyncClient
    address: str

    async def scrape(self) -> Scrape:
        found = await scrape(self.address)
        found.require_documented()
        return found

    async def ended(self, **labels: str) -> float:
        return (await self.scrape()).sum("corral_requests_total", **labels)


@pytest_asyncio.fixture
async def watched(settings: Settings, routes: Routes) -> AsyncIterator[Watched]:
    metrics = Metrics()
    exposition = Exposition(metrics.registry, host="127.0.0.1", port="auto", redis_url=settings.redis_url)
    telemetry = Telemetry(exposition.address)
    async with serving(create_app(settings, metrics, telemetry)) as url, httpx.AsyncClient(base_url=url, timeout=20) as http:
        await ready(url)
        yield Watched(http, exposition.address)
    await asyncio.to_thread(exposition.close)


async def test_requests_are_counted_by_model_team_and_outcome(watched: Watched, worker: Worker) -> None:
    async def answer() -> None:
        for _ in range(3):
            await (await worker.take()).whole("one", "two", "three")

    answering = asyncio.create_task(answer())
    headers = {"authorization": f"Bearer {USER_KEY}"}
    for _ in range(2):
        assert (await watched.http.post("/api/chat", json=ASKED, headers=headers)).status_code == 200
    assert (await watched.http.post("/v1/chat/completions", json=ASKED | {"stream": False})).status_code == 200
    await answering
    found = await watched.scrape()
    assert found.sum("corral_requests_total", model=MODEL, team="team", outcome="answered") == 2
    assert found.sum("corral_requests_total", model=MODEL, team="local", outcome="answered") == 1
    assert found.sum("corral_requests_total") == 3
    assert found.sum("corral_completion_tokens_total", model=MODEL, team="team") == 6
    assert found.sum("corral_prompt_tokens_total", team="team") == 6
    assert found.sum("corral_cached_tokens_total", team="team") == 2
    assert found.sum("corral_requests_in_flight") == 0
    for name in ("time_to_first_token", "request_duration", "prefill", "decode"):
        assert found.sum(f"corral_{name}_seconds_count", model=MODEL) == 3, name
    assert found.sum("corral_queue_wait_seconds_count", model=MODEL, priority="normal") == 3
    assert found.sum("corral_prefill_seconds_sum") == pytest.approx(3 * 0.002)
    assert found.sum("corral_prefill_seconds_bucket", le="0.0025") == 3
    assert found.sum("corral_decode_seconds_bucket", le="0.0025") == 0
    assert found.sum("corral_gateway_redis_connected") == 1


async def start_answer(worker: Worker) -> Answer:
    """Takes the next request and sends its first token."""
    answer = await worker.take()
    await answer.started()
    await answer.frame("one")
    return answer


async def test_time_to_first_token_and_between_tokens(watched: Watched, worker: Worker) -> None:
    starting = asyncio.create_task(start_answer(worker))
    async with watched.http.stream("POST", "/api/chat", json=ASKED) as response:
        answer = await starting
        lines = response.aiter_lines()
        await anext(lines)
        assert (await watched.scrape()).sum("corral_requests_in_flight", model=MODEL) == 1
        for word in ("two", "three"):
            await answer.frame(word)
            await anext(lines)
        found = await watched.scrape()
        assert found.sum("corral_time_to_first_token_seconds_count") == 1
        assert found.sum("corral_inter_token_seconds_count") == 2
        assert found.sum("corral_completion_tokens_total") == 3
        assert found.sum("corral_requests_total") == 0
        await answer.finished()
        assert [line async for line in lines][-1:]
    assert await watched.ended(outcome="answered") == 1


async def test_a_frame_with_several_tokens(watched: Watched, worker: Worker) -> None:
    asking = asyncio.create_task(watched.http.post("/api/chat", json=ASKED))
    answer = await start_answer(worker)
    await answer.frame("two three four", 102, 103, 104)
    await answer.finished()
    assert (await asking).status_code == 200
    assert (await watched.scrape()).sum("corral_completion_tokens_total", model=MODEL) == 4


async def test_cancellations_are_counted_by_phase(watched: Watched, worker: Worker) -> None:
    starting = asyncio.create_task(start_answer(worker))
    async with watched.http.stream("POST", "/api/chat", json=ASKED) as response:
        await starting
        await anext(response.aiter_lines())
    await eventually(lambda: watched.ended(outcome="cancelled"))
    found = await watched.scrape()
    assert found.rows("corral_cancellations_total", "phase") == {"running": 1}
    assert found.sum("corral_completion_tokens_total") == 1
    assert found.sum("corral_requests_in_flight") == 0


async def test_a_client_that_disconnects_while_it_waits(watched: Watched) -> None:
    asking = asyncio.create_task(watched.http.post("/api/chat", json=ASKED))
    await eventually(lambda: _in_flight(watched))
    asking.cancel()
    await eventually(lambda: watched.ended(outcome="cancelled"))
    assert (await watched.scrape()).sum("corral_cancellations_total", phase="waiting") == 1


async def _in_flight(watched: Watched) -> float:
    return (await watched.scrape()).sum("corral_requests_in_flight")


async def test_refusals_are_counted_by_reason(settings: Settings, watched: Watched, redis: Redis) -> None:
    assert (await watched.http.post("/api/chat", json=ASKED | {"model": "unknown"})).status_code == 404
    assert (await watched.http.post("/api/chat", content=b"{")).status_code == 400
    bad_key = {"authorization": "Bearer corral-nobody"}
    assert (await watched.http.post("/api/chat", json=ASKED, headers=bad_key)).status_code == 401
    one = Caller("k9", "cy", "", admin=False, max_waiting=1)
    await Routes(redis).publish(routes_snapshot(revision=2, callers={key_hash("corral-cy"): one}))
    headers = {"authorization": "Bearer corral-cy"}

    async def is_known() -> bool:
        return (await watched.http.get("/api/queue", headers=headers)).status_code == 200

    await eventually(is_known)
    waiting = asyncio.create_task(watched.http.post("/api/chat", json=ASKED, headers=headers))
    await eventually(lambda: _in_flight(watched))
    assert (await watched.http.post("/api/chat", json=ASKED, headers=headers)).status_code == 429
    waiting.cancel()
    await eventually(lambda: watched.ended(outcome="cancelled"))
    found = await watched.scrape()
    reasons = found.rows("corral_refusals_total", "reason")
    assert reasons.pop("unauthenticated") >= 1  # repeated until the key was known
    assert reasons == {"model_not_found": 1, "invalid_request": 1, "rate_limited": 1}
    assert found.sum("corral_requests_total", team="cy", outcome="rejected") == 1
    assert found.sum("corral_requests_total", outcome="refused") == 0


async def test_failures_and_failovers(watched: Watched, redis: Redis, worker: Worker) -> None:
    asking = asyncio.create_task(watched.http.post("/api/chat", json=ASKED))
    answer = await worker.take()
    await answer.started()
    await answer.frame("one")
    await answer.handed_over()
    again = await worker.take()
    assert len(again.committed) == 1
    await again.failed("invalid_request", "no")
    await asking
    found = await watched.scrape()
    assert found.rows("corral_failovers_total", "cause") == {"handed_over": 1}
    assert found.sum("corral_requests_total", outcome="rejected") == 1
    assert found.sum("corral_requests_total", outcome="failed") == 0
    assert found.sum("corral_requests_in_flight") == 0


async def test_a_lost_worker_is_a_failover(watched: Watched, redis: Redis) -> None:
    async with working(redis, CHAT) as first, working(redis, CHAT) as second:
        asking = asyncio.create_task(watched.http.post("/api/chat", json=ASKED))
        takes = {asyncio.create_task(worker.take()): worker for worker in (first, second)}
        done, waiting = await asyncio.wait(takes, return_when=asyncio.FIRST_COMPLETED)
        await takes[done.pop()].die()
        await (await waiting.pop()).whole("one")
        assert (await asking).status_code == 200
    assert (await watched.scrape()).sum("corral_failovers_total", cause="lost") == 1


async def test_a_request_that_waits_too_long_counts_as_expired(watched: Watched) -> None:
    answer = await watched.http.post("/api/chat", json=ASKED, headers={"x-request-timeout": "0.05"})
    assert answer.status_code == 504
    assert await watched.ended(outcome="expired") == 1


async def test_the_lag_of_the_event_loop_is_measured(watched: Watched) -> None:
    async def measured_lag() -> bool:
        return (await watched.scrape()).sum("corral_gateway_loop_lag_seconds_count") > 2

    await eventually(measured_lag)


async def test_the_registry_can_find_the_metrics_address(watched: Watched, redis: Redis) -> None:
    from services.protocol.gateways import Gateways

    gateways = Gateways(redis)

    async def is_listed() -> bool:
        return await gateways.metrics() == [watched.address]

    await eventually(is_listed)
