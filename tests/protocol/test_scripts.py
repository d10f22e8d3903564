"""Concurrent calls of a script: each gets its own reply, however the calls are grouped."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from services.protocol.connection import connect
from services.protocol.scripts import Scripts

#: Returns how often it was called with the key, and its argument.
ECHO = """
if ARGV[1] == "bad" then return redis.error_reply("ERR asked for") end
return { redis.call("INCR", KEYS[1]), ARGV[1] }
"""


@pytest.fixture
def echo(redis: Redis) -> Scripts:
    return Scripts(redis, {"echo": ECHO})


async def test_calls_are_executed_in_order_with_separate_replies(echo: Scripts) -> None:
    answers = await asyncio.gather(*(echo.call("echo", ["calls"], [number]) for number in range(200)))
    assert answers == [[number + 1, b"%d" % number] for number in range(200)]


async def test_a_burst_uses_one_connection(echo: Scripts, redis: Redis) -> None:
    before = len(await redis.client_list())
    await asyncio.gather(*(echo.call("echo", ["calls"], [number]) for number in range(200)))
    assert len(await redis.client_list()) <= before + 1


async def test_calls_made_while_others_are_running_are_executed(echo: Scripts) -> None:
    first = asyncio.create_task(echo.call("echo", ["calls"], ["first"]))
    while not first.done():
        await asyncio.sleep(0)
        await asyncio.gather(*(echo.call("echo", ["calls"], [number]) for number in range(3)))
    assert await first == [1, b"first"]


async def test_an_error_is_raised_only_by_its_own_call(echo: Scripts) -> None:
    calls = (echo.call("echo", ["calls"], [name]) for name in ("good", "bad", "better"))
    good, bad, better = await asyncio.gather(*calls, return_exceptions=True)
    assert (good, better) == ([1, b"good"], [2, b"better"])
    assert isinstance(bad, ResponseError)
    assert "asked for" in str(bad)


async def test_an_unknown_script_is_loaded(echo: Scripts, redis: Redis) -> None:
    assert await echo.call("echo", ["calls"], ["before"]) == [1, b"before"]
    await redis.script_flush()
    assert await asyncio.gather(*(echo.call("echo", ["calls"], [number]) for number in range(3))) == [
        [2, b"0"],
        [3, b"1"],
        [4, b"2"],
    ]


async def test_a_call_cancelled_before_it_is_sent_is_not_executed(echo: Scripts) -> None:
    calls = [asyncio.create_task(echo.call("echo", ["calls"], [number])) for number in range(3)]
    await asyncio.sleep(0)
    calls[1].cancel()
    await asyncio.wait(calls)
    assert [await calls[0], await calls[2]] == [[1, b"0"], [2, b"2"]]


async def test_a_connection_that_broke_between_calls_is_replaced(echo: Scripts, redis_url: str) -> None:
    assert await echo.call("echo", ["calls"], ["before"]) == [1, b"before"]
    async with connect(redis_url) as other:
        await other.client_kill_filter(_type="normal")
    assert await echo.call("echo", ["calls"], ["after"]) == [2, b"after"]
