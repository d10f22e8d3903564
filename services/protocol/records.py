"""What Redis still holds of requests: looks at the queue's records (keys: queue.lua), beside the queue, that change nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from redis.asyncio import Redis

from services.protocol.connection import redis_answers


class Records:
    """Raises Unavailable from every method when Redis does not answer."""

    def __init__(self, redis: Redis, *, prefix: str = "corral") -> None:
        self._redis = redis
        self._prefix = prefix

    async def held(self, worker: str) -> set[str]:
        """The requests that the worker has claimed and not lost to another claim."""
        async with redis_answers():
            members = cast("set[bytes]", await self._redis.smembers(f"{self._prefix}:claims:{worker}"))
        return {member.decode() for member in members}

    async def known(self, requests: Sequence[str]) -> set[str]:
        """Those that have not been settled, cancelled or lost."""
        async with redis_answers(), self._redis.pipeline(transaction=False) as pipe:
            for request in requests:
                pipe.exists(f"{self._prefix}:request:{request}")
            found = await pipe.execute()
        return {request for request, exists in zip(requests, found, strict=True) if exists}

    async def sent_by(self, gateway: str) -> list[tuple[str, int, float]]:
        """Id, epoch and cost of each of the gateway's requests. Looks at every request that there is: for a gateway that is gone."""
        found: list[tuple[str, int, float]] = []
        prefix = f"{self._prefix}:request:"
        async with redis_answers():
            keys = [key async for key in self._redis.scan_iter(match=f"{prefix}*", count=1000)]
            async with self._redis.pipeline(transaction=False) as pipe:
                for key in keys:
                    pipe.hmget(key, ["gateway", "epoch", "cost"])
                rows = await pipe.execute()
        for key, (sender, epoch, cost) in zip(keys, rows, strict=True):
            if sender == gateway.encode() and epoch is not None:
                found.append((key.decode().removeprefix(prefix), int(epoch), float(cost or 0)))
        return found
