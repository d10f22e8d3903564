"""Many calls of a script at once: each gets its own answer, however they travel."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from services.protocol.script import Script

#: Says how often it was called with the key, and gives the argument back.
ECHO = """
if ARGV[1] == "bad" then return redis.error_reply("ERR asked for") end
return { redis.call("INCR", KEYS[1]), ARGV[1] }
"""


@pytest.fixture
def echo(redis: Redis) -> Script:
    return Script(redis, ECHO)


async def test_calls_are_carried_out_in_their_order_and_answered_each_with_its_own(echo: Script) -> None:
    answers = await asyncio.gather(*(echo(["calls"], [number]) for number in range(200)))
    assert answers == [[number + 1, b"%d" % number] for number in range(200)]


async def test_a_burst_takes_one_connection(echo: Script, redis: Redis) -> None:
    before = len(await redis.client_list())
    await asyncio.gather(*(echo(["calls"], [number]) for number in range(200)))
    assert len(await redis.client_list()) <= before + 1


async def test_calls_that_come_while_others_are_under_way_are_made(echo: Script) -> None:
    first = asyncio.create_task(echo(["calls"], ["first"]))
    while not first.done():
        await asyncio.sleep(0)
        await asyncio.gather(*(echo(["calls"], [number]) for number in range(3)))
    assert await first == [1, b"first"]


async def test_an_error_is_that_of_its_own_call(echo: Script) -> None:
    calls = (echo(["calls"], [name]) for name in ("good", "bad", "better"))
    good, bad, better = await asyncio.gather(*calls, return_exceptions=True)
    assert (good, better) == ([1, b"good"], [2, b"better"])
    assert isinstance(bad, ResponseError)
    assert "asked for" in str(bad)


async def test_a_redis_that_does_not_know_the_script_learns_it(echo: Script, redis: Redis) -> None:
    assert await echo(["calls"], ["before"]) == [1, b"before"]
    await redis.script_flush()
    assert await asyncio.gather(*(echo(["calls"], [number]) for number in range(3))) == [[2, b"0"], [3, b"1"], [4, b"2"]]


async def test_a_call_that_is_cancelled_before_it_goes_out_is_not_made(echo: Script) -> None:
    calls = [asyncio.create_task(echo(["calls"], [number])) for number in range(3)]
    await asyncio.sleep(0)
    calls[1].cancel()
    await asyncio.wait(calls)
    assert [await calls[0], await calls[2]] == [[1, b"0"], [2, b"2"]]


async def test_a_connection_that_broke_between_two_calls_is_replaced(echo: Script, redis: Redis) -> None:
    assert await echo(["calls"], ["before"]) == [1, b"before"]
    await redis.client_kill_filter(_type="normal", skipme=False)
    assert await echo(["calls"], ["after"]) == [2, b"after"]
