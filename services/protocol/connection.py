"""How every service reaches Redis, and where the driver's errors become ours."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError
from redis.maint_notifications import MaintNotificationsConfig

from services.protocol.errors import Unavailable


def connect(url: str) -> Redis:
    """`url` is redis://, rediss:// or unix://. Bytes in, bytes out."""
    return Redis.from_url(
        url,
        # The driver's own time-out waits with asyncio.wait_for, which in Python 3.11 swallows a cancellation that meets an
        # answer (CPython issue 86296): 294 of 300 were lost. `redis_answers` has the time-out instead.
        socket_timeout=None,
        socket_connect_timeout=5,
        health_check_interval=15,
        protocol=3,
        # With them on, the pool no longer notices that a connection in it was closed by a Redis that restarted.
        maint_notifications_config=MaintNotificationsConfig(enabled=False),
    )


#: By which a Redis that hangs is noticed.
ANSWER_S = 5.0

#: The longest that one command blocks: less than the time-out, so that nothing to say is told from a Redis that hangs.
BLOCK_S = 1.0


@asynccontextmanager
async def redis_answers() -> AsyncIterator[None]:
    """Raises Unavailable for anything that keeps Redis from answering. The driver's text stays out: it may hold the URL."""
    try:
        async with asyncio.timeout(ANSWER_S):
            yield
    except (RedisError, OSError) as error:
        raise Unavailable(f"Redis does not answer ({type(error).__name__})") from error


async def wait_for_answer(command: Callable[[float], Awaitable[Any]], *, timeout_s: float) -> Any:
    """Gives a blocking command its seconds in turns of at most BLOCK_S, until one answers something or `timeout_s` is over."""
    deadline = time.monotonic() + timeout_s
    while True:
        left_s = deadline - time.monotonic()
        async with redis_answers():
            answer = await command(min(max(left_s, 0.001), BLOCK_S))
        if answer or left_s <= BLOCK_S:
            return answer


async def read_stream(redis: Redis, key: str, after: bytes, *, timeout_s: float) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """Entries of one stream behind the id `after`, oldest first; blocks until there are some, empty after `timeout_s`."""
    answer = await wait_for_answer(
        lambda wait_s: redis.xread({key: after}, count=256, block=math.ceil(wait_s * 1000)), timeout_s=timeout_s
    )
    # RESP3 answers {key: [entries]}; one key was asked for.
    return next(iter(answer.values()))[0] if answer else []
