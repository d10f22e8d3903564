"""How every service reaches Redis, and where the driver's errors become ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from services.protocol.errors import Unavailable


def connect(url: str) -> Redis:
    """`url` is redis://, rediss:// or unix://. Bytes in, bytes out."""
    return Redis.from_url(url, socket_connect_timeout=5, health_check_interval=15, protocol=3)


@contextmanager
def redis_errors() -> Iterator[None]:
    """Raises Unavailable for anything that keeps Redis from answering. The driver's text stays out: it may hold the URL."""
    try:
        yield
    except (RedisError, OSError) as error:
        raise Unavailable(f"Redis does not answer ({type(error).__name__})") from error


async def read_stream(redis: Redis, key: str, after: bytes, *, timeout_s: float) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """Entries of one stream behind the id `after`, oldest first; blocks until there are some, empty after `timeout_s`."""
    with redis_errors():
        answer: Any = await redis.xread({key: after}, count=256, block=int(timeout_s * 1000))
    # RESP3 answers {key: [entries]}; one key was asked for.
    return next(iter(answer.values()))[0] if answer else []
