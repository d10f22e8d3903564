"""The gateway's background loops with bad input: a key of the wrong type ends the process; an undecodable message is skipped."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from redis.asyncio import Redis

from services.process.loops import EXIT_CODE
from services.protocol.routes import Routes
from tests.conditions import eventually
from tests.doubles.worker import Worker
from tests.gateway.process import gateway

BODY = {"model": "smollm2:135m", "messages": [{"role": "user", "content": "Hi"}], "stream": False}


async def gateway_name(redis: Redis) -> str:
    [member] = await redis.smembers("corral:gateways")
    assert isinstance(member, bytes)
    return member.decode()


@pytest.mark.parametrize(
    ("key", "loop"),
    [("replies:{gateway}", "replies"), ("gateways", "lease"), ("workers", "claims"), ("routes", "routes")],
)
async def test_a_key_of_the_wrong_type_ends_the_process(
    redis_url: str, redis: Redis, routes: Routes, key: str, loop: str
) -> None:
    async with gateway(redis_url) as (process, _):
        name = f"corral:{key.format(gateway=await gateway_name(redis))}"
        async with redis.pipeline() as pipe:
            pipe.delete(name)
            pipe.rpush(name, "not what belongs here")
            await pipe.execute()
        _, stderr = await asyncio.wait_for(process.communicate(), timeout=30)
    assert process.returncode == EXIT_CODE
    assert "background loop failed" in stderr.decode()
    assert "WRONGTYPE" in stderr.decode()
    named = {"lease": ("lease", "lost gateways")}.get(loop, (loop,))
    assert any(f"loop={one}" in stderr.decode() for one in named)


async def test_undecodable_messages_are_skipped(redis_url: str, redis: Redis, routes: Routes, worker: Worker) -> None:
    """On the reply stream and in the routes; the gateway keeps its last routes."""
    async with gateway(redis_url) as (process, url), httpx.AsyncClient(base_url=url, timeout=20) as http:
        asked = asyncio.ensure_future(http.post("/api/chat", json=BODY))
        answer = await worker.take()
        stream = f"corral:replies:{answer.request.gateway}"
        for field, value in (("r", b"\x01\xff\xff"), ("r", b""), ("x", b"y")):
            await redis.xadd(stream, {field: value})
        snapshot = await redis.get("corral:routes")
        assert snapshot
        await redis.set("corral:routes", b"\x01\xff")
        await redis.publish("corral:routes:changed", "2")
        await answer.whole("Hello")
        assert (await asked).json()["message"]["content"] == "Hello"
        await redis.set("corral:routes", snapshot)
        await eventually(lambda: process.returncode is None)
