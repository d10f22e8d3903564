"""Request bodies: authorization first, limits on size and speed, and a budget for all bodies in flight."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.app import create_app
from services.gateway.bodies import BodyBudget, BodyLimits
from services.gateway.config import Settings
from services.protocol.errors import CallerLimited, CorralError, Unavailable
from services.protocol.routes import Routes
from tests.conditions import eventually
from tests.doubles.worker import Worker
from tests.gateway.conftest import USER_KEY, ready
from tests.gateway.raw_http import answer_to, connected, status_of
from tests.gateway.servers import serving

POSTS = ("/v1/chat/completions", "/api/chat", "/v1/embeddings", "/api/show", "/api/pull", "/registry/v1/pull")


def post(path: str, *headers: str) -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode()


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("framing", ["Content-Length: 50000000", "Transfer-Encoding: chunked"])
async def test_the_key_is_checked_before_the_body(settings: Settings, routes: Routes, path: str, framing: str) -> None:
    """The response is complete and the connection closes although the body was never sent."""
    async with serving(create_app(settings.model_copy(update={"auth": "required"}))) as url:
        await ready(url)
        for key in ((), ("Authorization: Bearer corral-nonsense",)):
            answer = await answer_to(url, post(path, framing, *key))
            assert status_of(answer) == 401
            assert b"connection: close" in answer
        if path in ("/api/pull", "/registry/v1/pull"):
            assert status_of(await answer_to(url, post(path, framing, f"x-api-key: {USER_KEY}"))) == 403


async def test_a_refused_body_does_not_break_the_response(settings: Settings, routes: Routes) -> None:
    async with (
        serving(create_app(settings.model_copy(update={"auth": "required"}))) as url,
        httpx.AsyncClient(base_url=url) as http,
    ):
        await ready(url)
        for _ in range(3):
            assert (await http.post("/api/chat", content=b" " * 5_000_000)).status_code == 401
        assert (await http.post("/api/chat", content=b"{}")).status_code == 401


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions", "/registry/v1/pull"])
async def test_a_body_over_the_limit_is_refused(shared_url: str, shared_http: httpx.AsyncClient, path: str) -> None:
    async def endless() -> Any:
        for _ in range(65):
            yield b" " * 2**20

    answer = await answer_to(shared_url, post(path, "Content-Length: 8388609"))
    assert status_of(answer) == 413
    assert b"larger than 8388608 bytes (CORRAL_MAX_BODY_BYTES)" in answer
    assert (await shared_http.post(path, content=endless())).status_code == 413


async def test_a_body_that_stalls_or_trickles_times_out(settings: Settings, routes: Routes) -> None:
    async with serving(create_app(settings.model_copy(update={"body_timeout_s": 0.5}))) as url:
        await ready(url)
        answer = await answer_to(url, post("/v1/chat/completions", "Content-Length: 100") + b"{")
        assert status_of(answer) == 408
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "request_timed_out"
        async with connected(url) as (reader, writer):
            writer.write(post("/api/chat", "Content-Length: 9000"))
            trickled = asyncio.create_task(reader.read())

            def one_byte_more() -> bool:
                writer.write(b" ")
                return trickled.done()

            await eventually(one_byte_more)
            assert status_of(await trickled) == 408


def test_when_the_next_bytes_are_due() -> None:
    limits = BodyLimits(1, 1, stall_s=30, bytes_per_s=1000)
    assert limits.due(started=100, now=100, size=0) == 130
    assert limits.due(started=100, now=110, size=50_000) == 140, "fast enough: within 30 s of the last"
    assert limits.due(started=100, now=140, size=20_000) == 150, "too slow on average"


async def test_one_caller_cannot_hold_the_whole_budget(settings: Settings, routes: Routes, worker: Worker) -> None:
    small = settings.model_copy(update={"auth": "required", "max_body_bytes": 1000, "max_body_bytes_in_flight": 4000})
    body = {"model": "smollm2:135m", "messages": [{"role": "user", "content": "x" * 700}]}
    keyed = {"Authorization": f"Bearer {USER_KEY}"}
    async with serving(create_app(small)) as url, httpx.AsyncClient(base_url=url, headers=keyed, timeout=20) as http:
        await ready(url)
        asked = [asyncio.create_task(http.post("/api/chat", json=body)) for _ in range(2)]
        answers = [await worker.take() for _ in asked]
        refused = await http.post("/v1/chat/completions", json=body)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "2")
        assert refused.json()["error"]["code"] == "rate_limited"
        assert (await http.get("/v1/models")).status_code == 200
        for answer in answers:
            await answer.started()
            await answer.finished()
        for task in asked:
            assert (await task).status_code == 200
        again = asyncio.create_task(http.post("/api/chat", json=body))
        await (await worker.take()).started()
        again.cancel()


async def test_all_callers_share_the_budget(settings: Settings, routes: Routes) -> None:
    small = settings.model_copy(update={"max_body_bytes": 1000, "max_body_bytes_in_flight": 1500})
    async with serving(create_app(small)) as url, connected(url) as (_, writer):
        await ready(url)
        writer.write(post("/api/chat", "Content-Length: 900"))

        async def is_refused() -> bool:
            answer = await answer_to(url, post("/api/chat", "Content-Length: 900", "Connection: close"))
            return status_of(answer) in (429, 503) and b"retry-after: 2" in answer

        await eventually(is_refused)


def test_a_body_of_the_allowed_size_fits_the_budget_alone(settings: Settings) -> None:
    limits = settings.model_copy(update={"max_body_bytes": 1000, "max_body_bytes_in_flight": 10}).body_limits
    BodyBudget(limits).take("anna", 1000)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 60)), max_size=40))
def test_the_budget_is_never_exceeded(bodies: list[tuple[str, int]]) -> None:
    limits = BodyLimits(60, 100, stall_s=1)
    budget, held = BodyBudget(limits), list[tuple[str, int]]()

    def held_by(*callers: str) -> int:
        return sum(size for caller, size in held if caller in callers)

    for caller, size in bodies:
        wanted: type[CorralError] | None = None
        if held_by(caller) + size > limits.per_caller:
            wanted = CallerLimited
        elif held_by(*"abc") + size > limits.in_flight:
            wanted = Unavailable
        if wanted is None:
            budget.take(caller, size)
            held.append((caller, size))
        else:
            with pytest.raises(wanted):
                budget.take(caller, size)
            budget.give_back(*held.pop(0))
