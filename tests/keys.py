"""The keys in a Redis."""

from __future__ import annotations

from redis.asyncio import Redis


async def key_names(redis: Redis, pattern: str = "*") -> list[str]:
    """Sorted. The driver's types leave open whether a key is bytes or text."""
    return sorted(key.decode() if isinstance(key, bytes) else key for key in await redis.keys(pattern))
