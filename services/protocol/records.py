"""Read-only queries of the queue's records in Redis (for the keys see queue_script/keys.lua)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from redis.asyncio import Redis

from services.protocol.connection import redis_answers


class Records:
    """Raises Unavailable if Redis does not answer."""

    def __init__(self, redis: Redis, *, namespace: str = "corral") -> None:
        self._redis = redis
        self._namespace = namespace

    async def held(self, worker: str) -> set[str]:
        """The ids of the requests whose current claim is the worker's."""
        async with redis_answers():
            members = cast("set[bytes]", await self._redis.smembers(f"{self._namespace}:claims:{worker}"))
        return {member.decode() for member in members}

    async def epochs(self, requests: Sequence[str]) -> dict[str, int | None]:
        """The current claim's epoch of each request, None for one that is waiting. Requests that Redis no longer has are left out."""
        async with redis_answers(), self._redis.pipeline(transaction=False) as pipe:
            for request in requests:
                pipe.hmget(f"{self._namespace}:request:{request}", ["epoch", "worker"])
            rows = await pipe.execute()
        return {
            request: int(epoch) if worker else None
            for request, (epoch, worker) in zip(requests, rows, strict=True)
            if epoch is not None
        }

    async def sent_by(self, gateway: str) -> list[str]:
        """The ids of the gateway's requests. Scans all requests, so it is only meant for cleaning up after a dead gateway."""
        prefix = f"{self._namespace}:request:"
        async with redis_answers():
            keys = [key async for key in self._redis.scan_iter(match=f"{prefix}*", count=1000)]
            async with self._redis.pipeline(transaction=False) as pipe:
                for key in keys:
                    pipe.hget(key, "gateway")
                senders = await pipe.execute()
        return [
            key.decode().removeprefix(prefix) for key, sender in zip(keys, senders, strict=True) if sender == gateway.encode()
        ]
